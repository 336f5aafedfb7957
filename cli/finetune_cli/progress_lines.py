"""Progress of a run where there is no terminal: a line for each event, and one now and then for the steps."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console

from finetune_api.status import Evaluation, ProgressRecord, Sample
from finetune_cli.plain_text import one_line
from finetune_cli.progress_words import answered, details, running_epoch, sizes, validated

if TYPE_CHECKING:
    from finetune_trainer.plan.prepare import Prepared

SECONDS_BETWEEN_STEPS = 10.0
"""Shortest time between two lines about steps, so that a log is not flooded."""


class LineProgress:
    """Prints plain lines; a `finetune_trainer.attempt.Observer`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._evaluation: Evaluation | None = None
        self._samples: list[Sample] = []
        self._shown_at = -SECONDS_BETWEEN_STEPS
        self._shown_step: int | None = None
        self._doing: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        return None

    def say(self, line: str) -> None:
        """Prints a line."""
        self._console.print(one_line(line))

    def prepared(self, prepared: Prepared) -> None:
        """Prints what is going to be trained."""
        self._console.print(sizes(prepared.plan))

    def progress(self, record: ProgressRecord) -> None:
        """Prints a line for a new validation, new answers, and now and then a line for a step.

        Before the first step it is one for what is done meanwhile, and after the last one for each thing.
        """
        if record.evaluation != self._evaluation:
            self._evaluation = record.evaluation
            self._console.print(validated(record))
        if record.samples != self._samples:
            self._samples = record.samples
            for line in answered(record.samples, self._console.width):
                self._console.print(line)
        plan, progress, now = record.plan, record.progress, time.monotonic()
        before, self._doing = self._doing, record.doing
        if record.doing is not None and progress is not None:
            if record.doing != before:
                self.say(record.doing)
            return
        if record.doing is not None and now - self._shown_at >= SECONDS_BETWEEN_STEPS:
            self._shown_at = now
            self.say(record.doing)
        if plan is None or progress is None or progress.step == self._shown_step:
            return
        is_due = self._shown_step is None or now - self._shown_at >= SECONDS_BETWEEN_STEPS
        if is_due or progress.step == plan.total_steps:
            self._shown_at, self._shown_step = now, progress.step
            where = f"epoch {running_epoch(progress, plan)}  step {progress.step}/{plan.total_steps}"
            self._console.print("  ".join([where, *details(progress, datetime.now(UTC))]))
