"""What is trained, and who trains it. Imports nothing heavy: processes that only pass it on need it as well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from finetune_api.numbers import ResolvedPrecision
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import ProgressRecord

if TYPE_CHECKING:
    import torch

    from finetune_trainer.plan.prepare import Prepared


@dataclass(frozen=True)
class Start:
    """What a run starts from: all that a worker must know to load its model, before the data are prepared."""

    spec: FineTuneJobSpec
    dtype: ResolvedPrecision
    run_directory: str
    resume_from: str | None
    """The checkpoint or snapshot in the run directory to resume from."""


@dataclass(frozen=True)
class TrainingJob:
    """What all workers are given."""

    name: str
    start: Start
    prepared: Prepared

    @property
    def padded_length(self) -> int | None:
        """What every batch is padded to, in tokens; None pads to the longest row."""
        padded = self.prepared.spec.padding == "max_length"
        return self.prepared.numbers.context_length if padded else None


@dataclass(frozen=True)
class Worker:
    """One of the processes that train."""

    rank: int
    num_devices: int
    device: torch.device
    report: Callable[[ProgressRecord], None]
    """Called on rank 0 only, after every step; must not block."""
    stop_requested: Callable[[], bool]
    """Asked on every rank after every step; one yes is enough."""


class Outcome(StrEnum):
    """How training returned."""

    FINISHED = "finished"
    STOPPED = "stopped"
