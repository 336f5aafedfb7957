"""The lines of `metrics.jsonl`: one for each optimizer step, one for each validation.

`step` counts updates done so far, times are UTC.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from finetune_api.status import Metrics, StatusModel


class StepLine(StatusModel):
    """What an optimizer step came to."""

    step: int
    epoch: float
    """Epochs completed."""
    loss: float
    """Mean over the step's trained tokens, before the update."""
    learning_rate: float
    grad_norm: float
    """L2 norm before clipping."""
    tokens: int
    """Tokens of the step's rows, without padding."""
    tokens_per_second: float | None
    time: datetime
    metrics: Metrics = Field(default_factory=dict)
    """Further means of the task by name, over what the loss is the mean of."""


class EvaluationLine(StatusModel):
    """What a validation came to."""

    step: int
    epoch: float
    eval_loss: float
    """Mean over the trained tokens of the validation set."""
    perplexity: float
    checkpoint: str | None
    """The checkpoint that holds this model; none before training."""
    time: datetime
    metrics: Metrics = Field(default_factory=dict)
    """As of a step."""


def numbers_of(line: StepLine | EvaluationLine) -> dict[str, float]:
    """What a tracker plots: the line's numbers under their names in the file, without the step they belong to."""
    numbers: dict[str, float] = line.model_dump(
        by_alias=True, exclude={"step", "time", "checkpoint", "metrics"}, exclude_none=True
    )
    return {**line.metrics, **numbers}
