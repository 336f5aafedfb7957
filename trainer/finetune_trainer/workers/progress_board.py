"""A Ray actor between workers and driver: it holds the newest that each has for the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError

from finetune_api.status import Failure, ProgressRecord

if TYPE_CHECKING:
    from finetune_trainer.training.job import TrainingJob


@dataclass(frozen=True)
class Notice:
    """What is on the board."""

    version: int = 0
    """Grows with every change."""
    record: ProgressRecord | None = None
    outcome: str | None = None
    """How rank 0 ended, once it has."""
    failure: Failure | None = None
    """The first failure that a worker knew how to name."""


@dataclass(frozen=True)
class JobReference:
    """Where in Ray's object store the job is; a bare reference would be fetched on the way."""

    reference: ray.ObjectRef[TrainingJob]


class ProgressBoard:
    """The newest progress record, how the run ended, and whether it should stop.

    Lives in an actor; see `open_board`.
    """

    def __init__(self) -> None:
        self._notice = Notice()
        self._stop = False
        self._job: JobReference | None = None

    def put_job(self, job: JobReference) -> None:
        """Takes down where the job is that workers wait for."""
        self._job = job

    def job(self) -> JobReference | None:
        """Where the job is, once it is prepared."""
        return self._job

    def put(self, record: ProgressRecord) -> bool:
        """Replaces the record; returns whether the run should stop."""
        self._change(record=record)
        return self._stop

    def put_outcome(self, outcome: str) -> None:
        """Notes how rank 0 ended."""
        self._change(outcome=outcome)

    def put_failure(self, failure: Failure) -> None:
        """Notes why a worker failed; the first word counts, since others fail in its wake."""
        if self._notice.failure is None:
            self._change(failure=failure)

    def stop(self) -> None:
        """Asks the run to stop after its current step."""
        self._stop = True

    def read(self) -> Notice:
        """All of it."""
        return self._notice

    def _change(
        self,
        *,
        record: ProgressRecord | None = None,
        outcome: str | None = None,
        failure: Failure | None = None,
    ) -> None:
        now = self._notice
        self._notice = Notice(
            now.version + 1, record or now.record, outcome or now.outcome, failure or now.failure
        )


Board = ActorHandle[ProgressBoard]


def open_board() -> Board:
    """A board on the driver's node, which holds no resources."""
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    return cast("Board", ray.remote(num_cpus=0, label_selector=here)(ProgressBoard).remote())


def read_board(board: Board, *, timeout: float | None = None) -> Notice | None:
    """What is on the board now; None when it does not answer within `timeout` seconds, as while it starts."""
    try:
        return ray.get(cast("ray.ObjectRef[Notice]", board.read.remote()), timeout=timeout)
    except GetTimeoutError:
        return None


def put_job(board: Board, job: ray.ObjectRef[TrainingJob]) -> None:
    """Says where the job is that workers wait for; returns at once."""
    board.put_job.remote(JobReference(job))


def read_job(board: Board) -> JobReference | None:
    """Where the job is, once it is prepared."""
    return ray.get(cast("ray.ObjectRef[JobReference | None]", board.job.remote()))


class BoardReporter:
    """A worker's side of the board: reports without waiting, and learns from the answers whether to stop."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._answers: list[ray.ObjectRef[bool]] = []
        self._stop = False

    def report(self, record: ProgressRecord) -> None:
        """Puts a record on the board."""
        self._answers.append(self._board.put.remote(record))

    def stop_requested(self) -> bool:
        """Whether an answer that has arrived asks to stop."""
        if self._answers:
            ready, self._answers = ray.wait(self._answers, num_returns=len(self._answers), timeout=0)
            self._stop = self._stop or any(ray.get(ready))
        return self._stop
