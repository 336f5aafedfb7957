"""What would be trained, as a document and as tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from finetune_api.manifest import Manifest
from finetune_api.numbers import Numbers, ResolvedPrecision
from finetune_api.sharding import Sharding
from finetune_api.spec import Output
from finetune_api.status import Plan, StatusModel
from finetune_cli.plain_text import one_line
from finetune_trainer.data.shown_rows import ShownRow
from finetune_trainer.plan.deepspeed_file import deepspeed_here
from finetune_trainer.plan.fit import Job, device_of, job_of, nearest, required, with_checkpointing
from finetune_trainer.plan.memory import MemoryEstimate
from finetune_trainer.plan.prepare import Prepared, TokenStatistics
from finetune_trainer.plan.sharding import Device, Resources

GIB = 2**30
SHOWN_EPOCHS = 6
ACTIVATIONS = {True: "recomputed", False: "kept", None: "kept where memory suffices"}


class PlannedDevice(StatusModel):
    """A device beside what the job needs of it."""

    name: str
    memory: int
    """Bytes that it has."""
    required: int
    """Bytes that it must have: the estimate, and what allocator and libraries take."""
    fits: bool
    ways: tuple[str, ...]
    """The nearest settings with which it fits, where it does not."""


class JobPlan(StatusModel):
    """The plan of a job."""

    plan: Plan
    """As in the status of the job."""
    numbers: Numbers
    """The fields of the spec that the plan comes from, with their defaults and spelled as in the spec."""
    token_statistics: TokenStatistics
    memory_per_device: dict[ResolvedPrecision, MemoryEstimate]
    """Bytes on each device, by the precision that is computed in."""
    sharding: Sharding
    """How the devices hold the model."""
    device: PlannedDevice | None
    """The device that the job's workers ask for; None where it names none."""
    warnings: tuple[str, ...]
    rows: tuple[ShownRow, ...] = ()
    """The first training rows, if they were asked for."""


def job_plan(manifest: Manifest, prepared: Prepared, rows: tuple[ShownRow, ...] = ()) -> JobPlan:
    """The plan of a prepared job.

    Where the job names no device and no precision, it has the memory on a GPU and on a CPU.
    """
    device = device_of(prepared.spec)
    file, _ = deepspeed_here(prepared.spec)
    jobs = {
        job.dtype: job
        for job in (
            job_of(prepared, file, on_gpu=on_gpu)
            for on_gpu in ((True,) if device or prepared.spec.dtype != "auto" else (True, False))
        )
    }
    sharding = next(iter(jobs.values())).sharding(device)
    if device is not None or prepared.spec.recomputes_activations is not None:
        prepared = with_checkpointing(prepared, file, sharding, Resources(on_gpu=True, device=device))
        jobs = {precision: replace(job, spec=prepared.spec) for precision, job in jobs.items()}
    return JobPlan(
        plan=prepared.plan,
        numbers=prepared.numbers,
        token_statistics=prepared.token_statistics,
        memory_per_device={precision: job.needs(sharding, device) for precision, job in jobs.items()},
        sharding=sharding,
        device=None if device is None else _planned(next(iter(jobs.values())), device, sharding),
        warnings=(*manifest.warnings, *prepared.warnings),
        rows=rows,
    )


def _planned(job: Job, device: Device, sharding: Sharding) -> PlannedDevice:
    needed = required(job.needs(sharding, device))
    fits = needed <= device.memory
    return PlannedDevice(
        name=device.name,
        memory=device.memory,
        required=needed,
        fits=fits,
        ways=() if fits else tuple(each.words for each in nearest(job, device)),
    )


def show_tables(console: Console, manifest: Manifest, plan: JobPlan) -> None:
    """Writes the tables."""
    console.print(one_line(f"{manifest.metadata.name}: {manifest.spec.model_id}"))
    for table in (
        _plan_table(plan, manifest.spec.output),
        _tokens_table(plan.token_statistics),
        _memory_table(plan),
    ):
        console.print()
        console.print(table)
    if plan.device is not None:
        console.print()
        console.print(one_line(in_words(plan.device)))


def in_words(device: PlannedDevice) -> str:
    """Whether a job fits its device."""
    needs = f"needs {device.required / GIB:.1f} GiB a device, {device.name} has {device.memory / GIB:.1f}"
    if device.fits:
        return f"fits: {needs}"
    return f"does not fit: {needs}: {'; or '.join(device.ways) or 'no settings were found that fit'}"


def _plan_table(plan: JobPlan, output: Output | None) -> Table:
    sizes, numbers = plan.plan, plan.numbers
    devices = "1 device" if numbers.num_devices == 1 else f"{numbers.num_devices} devices"
    factors = (
        f"{numbers.train_batch_size_per_device} rows x {devices} x"
        f" {numbers.gradient_accumulation_steps} accumulated"
    )
    table = _table("Plan", "")
    for name, value in (
        ("training rows", f"{sizes.rows:,}" if sizes.fill is None else _packed(plan)),
        ("validation rows", f"{sizes.validation_rows:,}"),
        ("truncated rows", f"{sizes.truncated_rows:,}"),
        ("tokens of an epoch", f"{sizes.tokens:,}"),
        ("context length", f"{sizes.context_length:,}"),
        ("effective batch size", f"{sizes.effective_batch_size:,} = {factors}"),
        ("steps per epoch", f"{sizes.steps_per_epoch:,}"),
        ("epochs", f"{sizes.total_epochs:,}"),
        ("steps", f"{sizes.total_steps:,}"),
        ("learning rate", _schedule(numbers)),
        ("activations", ACTIVATIONS[sizes.gradient_checkpointing]),
        ("checkpoints", _checkpoints(plan)),
        ("trained parameters", f"{sizes.trainable_parameters:,} of {sizes.total_parameters:,}"),
    ):
        table.add_row(name, value)
    if output is not None:
        table.add_row("pushed then", _pushed(output))
    return table


def _checkpoints(plan: JobPlan) -> str:
    sizes, numbers = plan.plan, plan.numbers
    epochs, steps = [index + 1 for index in sizes.checkpoint_epochs], sizes.total_steps
    partial = steps < sizes.total_epochs * sizes.steps_per_epoch
    after = [f"after epoch {_few(epochs[:-1] if partial else epochs)}"] if epochs[1:] or not partial else []
    after += [f"after step {steps:,}"] if partial else []
    validated = sizes.validation_rows and numbers.eval_steps is not None
    return " and ".join(after) + (f"; validation every {numbers.eval_steps:,} steps too" if validated else "")


def _pushed(output: Output) -> str:
    what = "the best checkpoint, merged," if output.merge else "the best checkpoint"
    return f"{what} to {output.push_to_hub}, {'public' if output.public else 'private'} if it is new"


def _packed(plan: JobPlan) -> str:
    sizes = plan.plan
    return f"{sizes.rows:,} sequences of {plan.token_statistics.rows:,} rows, {sizes.fill:.1%} full"


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


def _memory_table(plan: JobPlan) -> Table:
    memory = plan.memory_per_device
    names = (
        {"bf16": "GPU, bf16", "fp32": "CPU, fp32"}
        if len(memory) > 1
        else {precision: precision for precision in memory}
    )
    table = _table("Memory of a device, estimated, GiB", *(names[precision] for precision in memory))
    for part in MemoryEstimate.model_fields:
        values = [getattr(estimated, part) for estimated in memory.values()]
        name = {"moment": "at its most", "host": "host's, for a device"}.get(part, part)
        table.add_row(name, *(value if isinstance(value, str) else f"{value / GIB:,.2f}" for value in values))
    table.add_row("the model", *([_words(plan.sharding)] * len(memory)))
    return table


def _words(sharding: Sharding) -> str:
    """`a part on each device (fsdp), cpu_offload`."""
    if sharding.kind == "ddp":
        return "a copy on each device"
    where = "fsdp within nodes" if sharding.within_nodes else "fsdp"
    kept = "" if sharding.reshard else ", kept gathered"
    return f"a part on each device ({where}{kept}{', cpu_offload' if sharding.cpu_offload else ''})"


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
