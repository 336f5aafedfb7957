from __future__ import annotations

import threading

import pytest
from pydantic import BaseModel

from finetune_trainer.report.background import Background, LineWriter

SECONDS = 30.0


class Line(BaseModel):
    """A line of metrics, by its number."""

    number: int


def test_work_goes_on_in_the_background_until_its_result_is_taken() -> None:
    go = threading.Event()

    def work() -> int:
        assert go.wait(SECONDS)
        return 7

    background = Background(work, "work")
    assert not background.done
    go.set()
    assert background.result() == 7
    assert background.done


def test_what_goes_wrong_is_raised_where_the_result_is_taken() -> None:
    def work() -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        Background(work, "work").result()


def test_lines_are_written_in_their_order_and_none_is_lost() -> None:
    written: list[BaseModel] = []
    lines = LineWriter(written.append)
    for number in range(100):
        lines.put(Line(number=number))
    lines.wait()
    assert written == [Line(number=number) for number in range(100)]
    lines.put(Line(number=100))
    lines.close()
    assert written[-1] == Line(number=100)


def test_a_line_does_not_wait_for_the_one_before_until_too_many_do() -> None:
    go = threading.Event()
    written: list[BaseModel] = []

    def slow(line: BaseModel) -> None:
        assert go.wait(SECONDS)
        written.append(line)

    lines = LineWriter(slow, most=3)
    for number in range(3):
        lines.put(Line(number=number))
    assert written == []

    def put_more() -> None:
        for number in range(3, 6):
            lines.put(Line(number=number))

    last = threading.Thread(target=put_more)
    last.start()
    assert last.is_alive()
    go.set()
    last.join(SECONDS)
    lines.close()
    assert written == [Line(number=number) for number in range(6)]


def test_what_a_line_meets_is_raised_at_the_next_and_nothing_is_written_after_it() -> None:
    written: list[BaseModel] = []

    def full(line: BaseModel) -> None:
        if line == Line(number=1):
            raise OSError("no space left")
        written.append(line)

    lines = LineWriter(full)
    for number in range(2):
        lines.put(Line(number=number))
    with pytest.raises(OSError, match="no space left"):
        lines.wait()
    with pytest.raises(OSError, match="no space left"):
        lines.put(Line(number=2))
    lines.close()
    assert written == [Line(number=0)]
