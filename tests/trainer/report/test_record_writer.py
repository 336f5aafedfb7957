"""Progress records are written every few seconds, at once after important changes, and always at the end."""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime

import pytest

from finetune_api.failure import FailureClass
from finetune_api.status import Checkpoint, Failure, Progress, ProgressRecord
from finetune_trainer.report.record_writer import RecordRefusedError, RecordWriter, wait_before_write

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FAILURE = Failure(failure_class=FailureClass.NODE_LOST, message="gone")


def after(
    step: int, *, epochs: str = "0/2", checkpoints: int = 0, failure: Failure | None = None
) -> ProgressRecord:
    progress = Progress(
        epoch=step / 10, epochs=epochs, step=step, percent=step, tokens_trained=step, last_update_time=NOW
    )
    saved = [
        Checkpoint(name=f"epoch-{number}", path=f"/runs/epoch-{number}", epoch=1, step=1, time=NOW)
        for number in range(checkpoints)
    ]
    return ProgressRecord(progress=progress, checkpoints=saved, failure=failure)


def wait(
    newest: ProgressRecord | None,
    written: ProgressRecord | None,
    since_last_try: float,
    *,
    failed: bool = False,
) -> float | None:
    return wait_before_write(newest, written, since_last_try=since_last_try, failed=failed, interval=5)


# Whether a write is due


def test_the_first_record_is_written_at_once() -> None:
    assert wait(after(1), None, 100) == 0


def test_a_record_that_is_written_already_is_not_written_again() -> None:
    assert wait(after(1), after(1), 100) is None
    assert wait(None, None, 100) is None


def test_a_step_waits_for_its_turn() -> None:
    assert wait(after(2), after(1), 1) == 4
    assert wait(after(2), after(1), 5) == 0
    assert wait(after(2), after(1), 60) == 0


@pytest.mark.parametrize(
    "newest",
    [after(2, checkpoints=1), after(2, failure=FAILURE)],
    ids=["checkpoint", "failure"],
)
def test_what_matters_waits_for_nothing(newest: ProgressRecord) -> None:
    assert wait(newest, after(1), 0.1) == 0


def test_an_epoch_waits_for_nothing_but_another_one_that_has_just_ended() -> None:
    assert wait(after(2, epochs="1/2"), after(1), 1) == 0
    assert wait(after(2, epochs="1/2"), after(1), 0.25) == 0.75


def test_a_checkpoint_that_is_gone_waits_for_nothing() -> None:
    assert wait(after(2, checkpoints=1), after(2, checkpoints=2), 0.1) == 0


def test_after_a_failed_write_even_what_matters_waits() -> None:
    assert wait(after(2, failure=FAILURE), after(1), 1, failed=True) == 4
    assert wait(after(2, failure=FAILURE), None, 5, failed=True) == 0


# The thread


class Server:
    """Takes records; refuses the first `down` times."""

    def __init__(self, down: int = 0) -> None:
        self.down = down
        self.tries = 0
        self.records: list[ProgressRecord] = []
        self.changed = threading.Condition()

    def write(self, record: ProgressRecord) -> None:
        with self.changed:
            self.tries += 1
            self.changed.notify_all()
            if self.tries <= self.down:
                raise ConnectionRefusedError("no route to host")
            self.records.append(record)

    def wait_for(self, tries: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.tries >= tries, timeout=10)


def test_the_newest_record_is_written_when_the_block_ends() -> None:
    server = Server()
    with RecordWriter(server.write, interval=60) as writer:
        writer.put(after(1))
        server.wait_for(1)
        writer.put(after(2))
        writer.put(after(3))

    assert server.records == [after(1), after(3)]


def test_of_many_steps_few_are_written() -> None:
    server = Server()
    start = time.monotonic()
    with RecordWriter(server.write, interval=0.2) as writer:
        for step in range(50):
            writer.put(after(step))
            time.sleep(0.01)

    assert 3 <= len(server.records) <= 2 + (time.monotonic() - start) / 0.2
    assert server.records[-1] == after(49)


def test_a_write_that_takes_long_delays_nobody() -> None:
    going_on = threading.Event()

    def write(_record: ProgressRecord) -> None:
        going_on.wait(10)

    with RecordWriter(write, interval=0) as writer:
        start = time.monotonic()
        for step in range(100):
            writer.put(after(step))
        assert time.monotonic() - start < 5
        going_on.set()


def test_a_write_that_failed_is_tried_again_with_what_is_newest_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    server = Server(down=3)
    with RecordWriter(server.write, interval=0.05) as writer:
        writer.put(after(1))
        server.wait_for(2)
        writer.put(after(2))
        server.wait_for(4)

    assert server.records == [after(2)]
    assert caplog.messages == [
        "the progress record cannot be written, which is tried again: no route to host",
        "the progress record is written again",
    ]


def test_the_last_record_is_tried_again_for_some_time() -> None:
    server = Server(down=5)
    with RecordWriter(server.write, interval=0.05, patience=10) as writer:
        writer.put(after(1, failure=FAILURE))

    assert server.records == [after(1, failure=FAILURE)]


def test_a_server_that_stays_away_is_given_up_on(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(down=1_000_000)
    with RecordWriter(server.write, interval=0.05, patience=0.3) as writer:
        writer.put(after(1))

    assert server.records == []
    assert server.tries >= 3
    assert (
        caplog.messages[-1]
        == "the last progress record could not be written; nobody is told how this attempt ended"
    )


def test_a_server_that_refuses_is_given_up_on_soon() -> None:
    tries = 0

    def refuse(_record: ProgressRecord) -> None:
        nonlocal tries
        tries += 1
        raise RecordRefusedError("configmaps is forbidden")

    began = time.monotonic()
    with RecordWriter(refuse, interval=0.05, patience=60, patience_refused=0.3) as writer:
        writer.put(after(1))

    assert tries >= 3
    assert time.monotonic() - began < 30


def test_a_server_that_refused_and_then_stays_away_is_waited_for() -> None:
    server = Server(down=4)

    def write(record: ProgressRecord) -> None:
        try:
            server.write(record)
        except ConnectionRefusedError as error:
            if server.tries == 1:
                raise RecordRefusedError("configmaps is forbidden") from error
            raise

    with RecordWriter(write, interval=0.2, patience=60, patience_refused=0.3) as writer:
        writer.put(after(1))

    assert server.records == [after(1)]


def test_where_nothing_was_put_nothing_is_written() -> None:
    server = Server()
    with RecordWriter(server.write):
        pass

    assert server.tries == 0
