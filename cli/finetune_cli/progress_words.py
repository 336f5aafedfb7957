"""How a run's progress is put into words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from finetune_api.status import Checkpoint, Evaluation, Plan, Progress, ProgressRecord, Sample, shortened
from finetune_cli.plain_text import one_line

SHOWN_SAMPLES = 3
"""Questions whose answers are shown while a run goes on."""


def sizes(plan: Plan) -> str:
    """What is about to be trained, on one line."""
    return (
        f"{plan.rows:,} rows with {plan.tokens:,} tokens, {plan.total_epochs:,} x {plan.steps_per_epoch:,}"
        f" steps{plan.cut_short}, {parameters(plan.trainable_parameters)} of"
        f" {parameters(plan.total_parameters)} parameters"
    )


def running_epoch(progress: Progress, plan: Plan) -> str:
    """The epoch that is being trained, counted from 1, and how many there are: `2/3`."""
    return f"{min(int(progress.epoch) + 1, plan.total_epochs)}/{plan.total_epochs}"


def details(progress: Progress, now: datetime) -> list[str]:
    """Loss, time left and speed, as far as they are known, the most important one first."""
    known = []
    if progress.train_loss is not None:
        known.append(f"loss {progress.train_loss:.3f}")
    if progress.estimated_completion_time is not None:
        known.append(f"{clock(max(timedelta(), progress.estimated_completion_time - now))} left")
    if progress.tokens_per_second is not None:
        known.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    return known


def validated(record: ProgressRecord) -> str | None:
    """The last validation, and the checkpoint with that model if it was saved; None before the first one."""
    if record.evaluation is None:
        return None
    evaluation, plan = record.evaluation, record.plan
    saved = next((each for each in record.checkpoints if epochs_of(each, plan, 4) == evaluation.epoch), None)
    where = f", saved as {saved.name}" if saved else ""
    return f"{_model(evaluation)}: {measured(evaluation)}{where}"


def epochs_of(checkpoint: Checkpoint, plan: Plan | None, digits: int) -> float:
    """Epochs that were trained when a checkpoint was saved: a decimal where it is in the middle of one."""
    if plan is None:
        return checkpoint.epoch
    return round(checkpoint.step / plan.steps_per_epoch, digits)


def answered(samples: Sequence[Sample], width: int) -> Iterator[str]:
    """The first questions and the newest answer to each, a line for both, cut to `width` characters."""
    for sample in samples[:SHOWN_SAMPLES]:
        newest = sample.base_answer if sample.answer is None else sample.answer
        yield shortened(f"  asked     {_said(sample.prompt)}", width)
        yield shortened(f"  answered  {_said(newest)}", width)


def compared(sample: Sample) -> Iterator[str]:
    """A question, and what the base model, the tuned one and the validation row answer, a line for each."""
    yield f"  asked  {_said(sample.prompt)}"
    if sample.base_answer is not None:
        yield f"  base   {_said(sample.base_answer)}"
    if sample.answer is not None:
        yield f"  tuned  {_said(sample.answer)}"
    if sample.expected is not None:
        yield f"  row    {_said(sample.expected)}"


def _said(text: str | None) -> str:
    return one_line(" ".join((text or "").split())) or "(nothing)"


def measured(evaluation: Evaluation) -> str:
    """`validation loss 2.360, perplexity 10.6`; or, with metrics, `validation loss 0.612, accuracy 0.8`."""
    words = [f"validation loss {evaluation.loss:.3f}"]
    if evaluation.perplexity is not None:
        words.append(f"perplexity {evaluation.perplexity:.4g}")
    words += [f"{name} {value:.4g}" for name, value in evaluation.metrics.items()]
    return ", ".join(words)


def parameters(count: int) -> str:
    """A number of parameters in the field's own units: `4.9M`, `70.6B`."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def clock(duration: timedelta) -> str:
    """`1:42`, `1:02:03` or `2 days, 1:02:03`; whole seconds."""
    if duration.days or duration.seconds >= 3600:
        return str(timedelta(days=duration.days, seconds=duration.seconds))
    return f"{duration.seconds // 60}:{duration.seconds % 60:02}"


def _model(evaluation: Evaluation) -> str:
    return f"after epoch {evaluation.epoch:g}" if evaluation.epoch else "before training"
