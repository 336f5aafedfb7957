"""The one worker of a run on one device: this process."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers.utils.logging import disable_progress_bar

from finetune_api.failure import FailureClass
from finetune_api.status import ProgressRecord
from finetune_trainer.failures import failure_of
from finetune_trainer.training.job import Outcome, Start, TrainingJob, Worker
from finetune_trainer.training.loop import train
from finetune_trainer.workers.waiting import waiting
from finetune_trainer.workers.workers import Ended

_log = logging.getLogger(__name__)


class InProcess:
    """See `finetune_trainer.workers.workers`; `threads` are those of the arithmetic."""

    def __init__(self, device: torch.device, threads: int) -> None:
        self._device = device
        self._threads = threads

    @contextmanager
    def started(self, start: Start) -> Iterator[InProcess]:  # noqa: ARG002 - the job has it
        """Nothing to start: the model is loaded when training begins."""
        torch.set_num_threads(self._threads)
        disable_progress_bar()  # type: ignore[no-untyped-call]
        with waiting(self._threads):
            yield self

    def train(
        self,
        job: TrainingJob,
        report: Callable[[ProgressRecord], None],
        stop_requested: Callable[[], bool],
    ) -> Ended:
        """See `finetune_trainer.workers.workers.Group`."""
        last: ProgressRecord | None = None

        def reported(record: ProgressRecord) -> None:
            nonlocal last
            last = record
            report(record)

        try:
            outcome: Outcome = train(job, Worker(0, 1, self._device, reported, stop_requested))
        except Exception as error:  # noqa: BLE001 - the failure names whatever it is
            failure = failure_of(error)
            if failure.failure_class is FailureClass.UNKNOWN:
                _log.error("%s", "".join(traceback.format_exception(error)))
            return Ended(last, None, failure)
        return Ended(last, outcome)
