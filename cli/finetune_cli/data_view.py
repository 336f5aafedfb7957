"""What the rows of a job are, as a document and as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.bar import Bar
from rich.console import Console
from rich.table import Table

from finetune_api.manifest import Manifest
from finetune_api.status import StatusModel
from finetune_cli.plain_text import one_line
from finetune_trainer.data.row_statistics import Bin
from finetune_trainer.data.shown_rows import ShownRow
from finetune_trainer.plan.inspection import FileStatistics, Inspection, RepeatedRows

BAR_WIDTH = 40


class JobData(StatusModel):
    """The rows of a job."""

    task: str
    context_length: int
    """The most tokens of a row that are trained on."""
    files: tuple[FileStatistics, ...]
    """Of training rows and, if there are any, validation rows."""
    rows: tuple[ShownRow, ...]
    """The first training rows, if they were asked for."""
    warnings: tuple[str, ...]


def job_data(manifest: Manifest, inspection: Inspection, rows: int) -> JobData:
    """The rows of a job, with so many of them token by token."""
    return JobData(
        task=manifest.spec.trained_task,
        context_length=inspection.prepared.plan.context_length,
        files=inspection.files(),
        rows=inspection.first_rows(rows),
        warnings=(*manifest.warnings, *inspection.prepared.warnings),
    )


def show_statistics(console: Console, manifest: Manifest, data: JobData) -> None:
    """Writes the statistics of each file."""
    console.print(one_line(f"{manifest.metadata.name}: {manifest.spec.model_id}, {data.task}"))
    for file in data.files:
        console.print()
        console.print(one_line(file.path), style="bold")
        table = _table()
        for name, value in _facts(file, data.context_length):
            table.add_row(name, value)
        console.print(table)
        console.print()
        of = "conversations" if data.task == "preference_tuning" else "rows"
        console.print(_histogram(file.lengths, of))


def _facts(file: FileStatistics, context_length: int) -> Iterator[tuple[str, str]]:
    yield "rows", f"{file.rows:,}"
    yield "tokens", f"{file.tokens:,}"
    yield "trained tokens", f"{file.trained_tokens:,}"
    yield "shortest", f"{file.shortest:,} tokens"
    yield "median", f"{file.median:,}"
    yield "95th percentile", f"{file.percentile95:,}"
    yield "longest", f"{file.longest:,}"
    yield "truncated rows", f"{file.truncated_rows:,}, which have more than {context_length:,} tokens"
    yield "duplicates", _repeats(file.duplicates, " again")
    if file.in_training is not None:
        yield "also training rows", _repeats(file.in_training, " of the training rows")
    for label, rows in (file.labels or {}).items():
        yield f"label {one_line(label)}", f"{rows:,} rows"


def _repeats(found: RepeatedRows | None, of: str) -> str:
    if found is None:
        return "0"
    return f"{found.rows:,}; the first, {found.at}, is {found.of}{of}"


def _histogram(bins: Sequence[Bin], of: str) -> Table:
    table = _table("tokens", of)
    most = max(each.rows for each in bins)
    for each in bins:
        lengths = (
            f"{each.shortest:,} - {each.longest:,}" if each.longest > each.shortest else f"{each.longest:,}"
        )
        bar = Bar(most, 0, each.rows, width=BAR_WIDTH)
        table.add_row(lengths, f"{each.rows:,}", bar)
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=bool(headings))
    table.add_column(headings[0] if headings else "", min_width=20, justify="right" if headings else "left")
    for heading in headings[1:]:
        table.add_column(heading, justify="right")
    table.add_column("")
    return table
