"""A training job, and the worker that trains it.

Processes that only pass a job on import this too, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from finetune_api.numbers import ResolvedPrecision
from finetune_api.sharding import COPIES, Sharding
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import ProgressRecord

if TYPE_CHECKING:
    import torch

    from finetune_trainer.plan.prepare import Prepared


@dataclass(frozen=True)
class Start:
    """What a worker needs to load its model, even before the rows are prepared."""

    spec: FineTuneJobSpec
    dtype: ResolvedPrecision
    run_directory: str
    resume_from: str | None
    """The name of the checkpoint or snapshot in the run directory to resume from; None begins anew."""
    sharding: Sharding = COPIES
    resume_in: str | None = None
    """The run directory that has it, where that is another one."""


@dataclass(frozen=True)
class TrainingJob:
    """A job that is ready to train; the same for all workers."""

    name: str
    start: Start
    prepared: Prepared

    @property
    def padded_length(self) -> int | None:
        """The length in tokens that every batch is padded to; None pads to the batch's longest row."""
        padded = self.prepared.spec.padding == "max_length"
        return self.prepared.numbers.context_length if padded else None

    def for_this_machine(self) -> TrainingJob:
        """The same job for other processes of this machine, which map its rows from disk as this one does."""
        from finetune_trainer.data.token_files import by_path

        train, validation = self.prepared.train, self.prepared.validation
        prepared = replace(
            self.prepared,
            train=by_path(train),
            validation=None if validation is None else by_path(validation),
        )
        return replace(self, prepared=prepared)


@dataclass(frozen=True)
class Worker:
    """One of the processes that train."""

    rank: int
    num_devices: int
    device: torch.device
    report: Callable[[ProgressRecord], None]
    """Takes progress records. Called on rank 0 only, at least once a step; must not block."""
    stop_requested: Callable[[], bool]
    """Called on every rank once a step. Training stops when it returns true on any of them."""


class Outcome(StrEnum):
    """How training ended when nothing failed."""

    FINISHED = "finished"
    STOPPED = "stopped"
