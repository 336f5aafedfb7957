"""Progress of a run on a terminal: a bar at the bottom, and above it a line for each event."""

from __future__ import annotations

from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from finetune_api.status import Evaluation, Plan, Progress, ProgressRecord, Sample
from finetune_cli.plain_text import one_line
from finetune_cli.progress_words import answered, details, running_epoch, sizes, validated

if TYPE_CHECKING:
    from finetune_trainer.plan.prepare import Prepared

SHORTEST_BAR = 10
"""Characters; details that would leave less to the bar are not shown."""


class TerminalProgress:
    """Shows a run on a terminal; the bar is there inside the `with` block.

    A `finetune_trainer.attempt.Observer`.
    """

    def __init__(self, console: Console, doing: str) -> None:
        self._console = console
        self._line = StatusLine(doing)
        self._live = Live(self._line, console=console, transient=True, refresh_per_second=8)
        self._evaluation: Evaluation | None = None
        self._samples: list[Sample] = []

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        self._console.print(one_line(line))

    def prepared(self, prepared: Prepared) -> None:
        """Prints what is going to be trained."""
        self._console.print(sizes(prepared.plan))
        self._line.doing = "loading the model"

    def progress(self, record: ProgressRecord) -> None:
        """Moves the bar, and prints a line for a new validation, and the answers of new samples."""
        self._line.record = record
        if record.evaluation != self._evaluation:
            self._evaluation = record.evaluation
            self._console.print(validated(record))
        if record.samples != self._samples:
            self._samples = record.samples
            for line in answered(record.samples, self._console.width):
                self._console.print(line)


class StatusLine:
    """The line at the bottom: what the run is doing and, once it trains, how far it is."""

    def __init__(self, doing: str) -> None:
        self.doing = doing
        self.record: ProgressRecord | None = None
        self._spinner = Spinner("dots")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        record = self.record or ProgressRecord()
        if record.doing is None and record.plan is not None and record.progress is not None:
            yield _bar(record.plan, record.progress, options.max_width)
        else:
            doing = Text(record.doing or self.doing)
            doing.truncate(options.max_width - 2, overflow="ellipsis")
            self._spinner.update(text=doing)
            yield self._spinner


def _bar(plan: Plan, progress: Progress, width: int) -> Table:
    """The bar with its numbers; on a narrow terminal the last ones are left out.

    epoch 2/3 ━━━━━━━━╸━━━━ 41/72  loss 2.412  1:42 left  206 tokens/s
    """
    left = f"epoch {running_epoch(progress, plan)}"
    right = f"{progress.step:{len(str(plan.total_steps))}}/{plan.total_steps}"
    for detail in details(progress, datetime.now(UTC)):
        if len(left) + SHORTEST_BAR + len(right) + len(detail) + 4 > width:
            break
        right += f"  {detail}"
    line = Table.grid(padding=(0, 1), expand=True)
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True)
    line.add_row(left, ProgressBar(total=plan.total_steps, completed=progress.step), right)
    return line
