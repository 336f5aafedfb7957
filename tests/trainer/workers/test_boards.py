"""What workers and driver have for each other, on either board, with real workers of Ray."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
import ray

from finetune_api.failure import FailureClass
from finetune_api.status import Failure, Progress, ProgressRecord
from finetune_trainer.training.job import TrainingJob
from finetune_trainer.workers.actor_board import ActorBoard
from finetune_trainer.workers.directory_board import DirectoryBoard
from finetune_trainer.workers.local_ray import local_ray
from finetune_trainer.workers.progress_board import Notice, ProgressBoard

BOARDS = ("actor", "directory")
FAILURE = Failure(failure_class=FailureClass.INVALID_DATA, message="train.jsonl:17: no messages")
LATER = Failure(failure_class=FailureClass.UNKNOWN, message="a rank is gone")
JOB = cast("TrainingJob", {"rows": [1, 2, 3]})
"""The board does not look at it."""
SECONDS = 60


def record(step: int) -> ProgressRecord:
    progress = Progress(
        epoch=step / 3,
        epochs="0/2",
        step=step,
        percent=0,
        train_loss=0.1 + 0.2,
        tokens_trained=step,
        last_update_time=datetime(2026, 11, 27, 12, tzinfo=UTC),
    )
    return ProgressRecord(attempt=1, progress=progress)


@pytest.fixture(scope="module", autouse=True)
def with_ray() -> Iterator[None]:
    # Ray's workers do not have the tests on their import path.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]
    with local_ray(cpus=1, gpus=0):
        yield


@pytest.fixture
def boards(tmp_path: Path) -> dict[str, ProgressBoard]:
    return {"actor": ActorBoard(), "directory": DirectoryBoard(tmp_path)}


def until(board: ProgressBoard, version: int) -> Notice:
    ends = time.monotonic() + SECONDS
    while (notice := board.read(timeout=SECONDS)) is None or notice.version < version:
        assert time.monotonic() < ends, notice
        time.sleep(0.01)
    return notice


@ray.remote(num_cpus=1)
def work(board: ProgressBoard) -> object:
    """A worker that trains until it is told to stop, and returns the job that it was given."""
    while (job := board.job()) is None:
        time.sleep(0.01)
    reporter = board.reporter()
    step = 0
    while not reporter.stop_requested():
        step += 1
        reporter.report(record(step))
        time.sleep(0.01)
    board.put_failure(FAILURE)
    board.put_failure(LATER)
    board.put_outcome("stopped")
    return ray.get(job)


@pytest.mark.parametrize("name", BOARDS)
def test_a_worker_gets_its_job_reports_and_stops_when_it_is_asked_to(
    boards: dict[str, ProgressBoard], name: str
) -> None:
    board = boards[name]
    assert board.read(timeout=SECONDS) == Notice()
    working = work.remote(board)
    board.put_job(ray.put(JOB))

    seen = until(board, 3)
    assert seen.record == record(seen.version), "the newest, to the digit"
    assert (seen.outcome, seen.failure) == (None, None)

    board.stop()
    assert ray.get(working, timeout=SECONDS) == JOB
    last = board.read(timeout=SECONDS)
    assert last is not None
    assert last.version >= seen.version
    assert last.record == record(last.version)
    assert (last.outcome, last.failure) == ("stopped", FAILURE), "the first failure counts"


@pytest.mark.parametrize("name", BOARDS)
def test_there_is_no_job_before_it_is_prepared(boards: dict[str, ProgressBoard], name: str) -> None:
    assert boards[name].job() is None


def test_each_record_replaces_the_one_before_and_leaves_nothing_beside(tmp_path: Path) -> None:
    board = DirectoryBoard(tmp_path)
    reporter = board.reporter()
    for step in range(1, 200):
        reporter.report(record(step))
        notice = board.read()
        assert notice == Notice(step, record(step))
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]
