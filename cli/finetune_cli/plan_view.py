"""What would be trained, as a document and as tables."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from finetune_api.manifest import Manifest
from finetune_api.numbers import Numbers, ResolvedPrecision
from finetune_api.status import Plan, StatusModel
from finetune_cli.plain_text import one_line
from finetune_trainer.plan.memory import MemoryEstimate, estimate
from finetune_trainer.plan.prepare import Prepared, TokenStatistics

GIB = 2**30
SHOWN_EPOCHS = 6


class JobPlan(StatusModel):
    """The plan of a job."""

    plan: Plan
    """As in the status of the job."""
    numbers: Numbers
    """The fields of the spec that the plan comes from, with their defaults and spelled as in the spec."""
    token_statistics: TokenStatistics
    memory_per_device: dict[ResolvedPrecision, MemoryEstimate]
    """Bytes on each device, by the precision that is computed in."""
    warnings: tuple[str, ...]


def job_plan(manifest: Manifest, prepared: Prepared) -> JobPlan:
    """The plan of a prepared job.

    With `dtype: auto` it has the memory for both precisions that the job may be computed in.
    """
    precisions: tuple[ResolvedPrecision, ...] = (
        ("bf16", "fp32") if manifest.spec.dtype == "auto" else (manifest.spec.dtype,)
    )
    return JobPlan(
        plan=prepared.plan,
        numbers=prepared.numbers,
        token_statistics=prepared.token_statistics,
        memory_per_device={precision: estimate(prepared, precision) for precision in precisions},
        warnings=(*manifest.warnings, *prepared.warnings),
    )


def show_tables(console: Console, manifest: Manifest, plan: JobPlan) -> None:
    """Writes the tables."""
    console.print(one_line(f"{manifest.metadata.name}: {manifest.spec.model_id}"))
    for table in (
        _plan_table(plan),
        _tokens_table(plan.token_statistics),
        _memory_table(plan.memory_per_device),
    ):
        console.print()
        console.print(table)


def _plan_table(plan: JobPlan) -> Table:
    sizes, numbers = plan.plan, plan.numbers
    devices = "1 device" if numbers.num_devices == 1 else f"{numbers.num_devices} devices"
    factors = (
        f"{numbers.train_batch_size_per_device} rows x {devices} x"
        f" {numbers.gradient_accumulation_steps} accumulated"
    )
    table = _table("Plan", "")
    for name, value in (
        ("training rows", f"{sizes.rows:,}"),
        ("validation rows", f"{sizes.validation_rows:,}"),
        ("truncated rows", f"{sizes.truncated_rows:,}"),
        ("tokens of an epoch", f"{sizes.tokens:,}"),
        ("context length", f"{sizes.context_length:,}"),
        ("effective batch size", f"{sizes.effective_batch_size:,} = {factors}"),
        ("steps per epoch", f"{sizes.steps_per_epoch:,}"),
        ("epochs", f"{sizes.total_epochs:,}"),
        ("steps", f"{sizes.total_steps:,}"),
        ("learning rate", _schedule(numbers)),
        ("checkpoints", f"after epoch {_few([index + 1 for index in sizes.checkpoint_epochs])}"),
        ("trained parameters", f"{sizes.trainable_parameters:,} of {sizes.total_parameters:,}"),
    ):
        table.add_row(name, value)
    return table


def _schedule(numbers: Numbers) -> str:
    after = f"after {numbers.num_warmup_steps} warm-up steps"
    return f"{numbers.learning_rate:g}, {numbers.lr_scheduler_type} {after}"


def _tokens_table(statistics: TokenStatistics) -> Table:
    table = _table("Tokens of the training rows", "")
    for name, value in (
        ("shortest row", statistics.shortest),
        ("median", statistics.median),
        ("95th percentile", statistics.percentile95),
        ("longest row", statistics.longest),
        ("all rows", statistics.tokens),
        ("trained on", statistics.trained_tokens),
    ):
        table.add_row(name, f"{value:,}")
    return table


def _memory_table(memory: dict[ResolvedPrecision, MemoryEstimate]) -> Table:
    names = (
        {"bf16": "GPU, bf16", "fp32": "CPU, fp32"}
        if len(memory) > 1
        else {precision: precision for precision in memory}
    )
    table = _table("Memory of a device, estimated, GiB", *(names[precision] for precision in memory))
    for part in MemoryEstimate.model_fields:
        table.add_row(part, *(f"{getattr(estimated, part) / GIB:,.2f}" for estimated in memory.values()))
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(title, min_width=20)
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    return table


def _few(numbers: Iterable[int]) -> str:
    """`1, 2, 3`; of many only the first ones and the last: `5, 10, 15, 20, 25, … 100 (20 in all)`."""
    shown = [f"{number:,}" for number in numbers]
    if len(shown) <= SHOWN_EPOCHS:
        return ", ".join(shown)
    return f"{', '.join(shown[: SHOWN_EPOCHS - 1])}, … {shown[-1]} ({len(shown):,} in all)"
