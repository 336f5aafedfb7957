"""Between workers and driver: the newest that each has for the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from finetune_api.status import Failure, ProgressRecord

if TYPE_CHECKING:
    import ray

    from finetune_trainer.training.job import TrainingJob


@dataclass(frozen=True)
class Notice:
    """What is on the board."""

    version: int = 0
    """Grows with every new record."""
    record: ProgressRecord | None = None
    outcome: str | None = None
    """How rank 0 ended, once it has."""
    failure: Failure | None = None
    """The first failure that a worker knew how to name."""


class Reporter(Protocol):
    """A worker's way to report without waiting, and to learn whether to stop."""

    def report(self, record: ProgressRecord) -> None:
        """Replaces the record on the board."""

    def stop_requested(self) -> bool:
        """Whether the run should stop after its current step."""


class ProgressBoard(Protocol):
    """The newest progress record, how the run ended, whether it should stop, and where its job is.

    It is handed to every worker.
    """

    def put_job(self, job: ray.ObjectRef[TrainingJob]) -> None:
        """Says where in Ray's object store the job is that workers wait for; returns at once."""

    def job(self) -> ray.ObjectRef[TrainingJob] | None:
        """Where the job is, once it is prepared."""

    def reporter(self) -> Reporter:
        """What a worker reports by; rank 0 alone does."""

    def put_outcome(self, outcome: str) -> None:
        """Notes how rank 0 ended."""

    def put_failure(self, failure: Failure) -> None:
        """Notes why a worker failed; the first word counts, since others fail in its wake."""

    def stop(self) -> None:
        """Asks the run to stop after its current step."""

    def read(self, *, timeout: float | None = None) -> Notice | None:
        """All of it; None when it cannot be read within `timeout` seconds, as while it starts."""
