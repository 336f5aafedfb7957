"""Several processes give what one gives, in the same order, also where one of them dies."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.trainer.tokenizers_for_tests import byte_level

from finetune_trainer.data import processes
from finetune_trainer.data.chat import chat_format
from finetune_trainer.data.encoding import ConversationEncoder, EncodedLines
from finetune_trainer.data.processes import EncodingProcesses, encoded, processes_for
from finetune_trainer.data.rows import Lines

LINES = 40
ENCODER = ConversationEncoder(
    "instruction_tuning", chat_format(byte_level(), None, "instruction_tuning", "org/model")
)


def part(number: int) -> Lines:
    said = "Pong <|im_end|>" if number % 7 == 0 else "Pong" * (number % 5 + 1)
    turns = [{"role": "user", "content": f"Ping {number}?"}, {"role": "assistant", "content": said}]
    return Lines(number, [json.dumps({"messages": turns, "id": number}).encode()])


PARTS = [part(number) for number in range(1, LINES + 1)]


def plain(done: EncodedLines) -> object:
    rows = done.rows
    arrays = [array.tolist() for array in (rows.input_ids, rows.trained, rows.offsets, rows.lines)]
    return arrays, done.unreadable, done.refused, done.remarks


EXPECTED = [plain(ENCODER.encode(lines)) for lines in PARTS]


@pytest.fixture(scope="module")
def group() -> Iterator[EncodingProcesses]:
    """Two processes that have begun."""
    with closing(EncodingProcesses(ENCODER, 2)) as started:
        assert started.begun.wait(timeout=200)
        yield started


def test_several_processes_give_what_one_gives_in_the_same_order(group: EncodingProcesses) -> None:
    done = [group.encode(lines, False) for lines in PARTS]

    assert [plain(each.result()) for each in done] == EXPECTED
    assert not any(process.has_failed for process in group.processes)


def test_what_a_process_that_died_was_to_do_is_done_here(group: EncodingProcesses) -> None:
    os.kill(group.processes[0].pid, signal.SIGKILL)

    done = [group.encode(lines, False) for lines in PARTS]

    assert [plain(each.result()) for each in done] == EXPECTED
    assert [process.has_failed for process in group.processes] == [True, False]


def test_they_end_with_the_group_and_do_not_import_torch(group: EncodingProcesses) -> None:
    maps = Path(f"/proc/{group.processes[1].pid}/maps")
    deadline = time.monotonic() + 200
    while "tokenizers" not in maps.read_text():  # the group has begun when one of them has
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "libtorch" not in maps.read_text()

    group.close()

    assert all(process.has_ended for process in group.processes)


def test_until_the_processes_have_begun_the_parts_are_encoded_here() -> None:
    assert [plain(done) for done in encoded(PARTS, ENCODER, 2)] == EXPECTED


@pytest.mark.parametrize("count", [0, 2])
def test_once_a_line_is_no_row_the_others_are_only_checked(count: int) -> None:
    parts = [Lines(1, [b"{"]), part(2), Lines(3, [b"["])]

    done = list(encoded(parts, ENCODER, count))

    assert [each.unreadable[:1] != [] for each in done] == [True, False, True]
    assert len(done[1].rows) == 0


def test_small_files_and_single_processors_start_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "usable_processors", lambda: 64)
    mb = 2**20
    assert [processes_for(size) for size in (0, 15 * mb, 16 * mb, 30 * mb, 2**30)] == [0, 0, 2, 3, 8]
    monkeypatch.setattr(processes, "usable_processors", lambda: 1)
    assert processes_for(2**30) == 0
