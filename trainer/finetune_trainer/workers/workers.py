"""What an attempt knows of the processes that train for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from finetune_api.status import Failure, ProgressRecord
from finetune_trainer.training.job import Outcome, Start, TrainingJob

NOT_SAVED = "the workers were ended at the same time, without a snapshot"


@dataclass(frozen=True)
class Ended:
    """How training ended."""

    record: ProgressRecord | None
    """The last one that was reported; None when training did not begin."""
    outcome: Outcome | None
    """None when it failed before it could stop by itself."""
    failure: Failure | None = None
    began: datetime | None = None
    """When workers were asked to train; None when the run had finished before."""
    saved: bool = True
    """Of a run that was stopped: whether its workers saved a snapshot."""
    trained: bool = False
    """Of a run that was stopped: whether training was over, and only `output` of the spec was left."""


class Group(Protocol):
    """Workers that have been started."""

    def train(
        self,
        job: TrainingJob,
        report: Callable[[ProgressRecord], None],
        stop_requested: Callable[[], bool],
    ) -> Ended:
        """Trains a job to its end, or to the step at which a stop is requested, with a snapshot.

        `report` is called in this thread with new records, for the first time before the first step.
        """


class Workers(Protocol):
    """A way to run the processes that train."""

    def started(self, start: Start) -> AbstractContextManager[Group]:
        """Starts workers, which load their model at once; the end of the `with` block ends them."""
