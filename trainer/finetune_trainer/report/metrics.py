"""The lines of `metrics.jsonl`: one for each optimizer step, and one for each validation.

`step` is the number of optimizer steps done so far. Times are in UTC.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from finetune_api.status import Metrics, StatusModel


class StepLine(StatusModel):
    """The numbers of an optimizer step."""

    step: int
    epoch: float
    """The number of epochs done so far."""
    loss: float
    """The mean over the step's tokens that count, before the update."""
    learning_rate: float
    grad_norm: float
    """The L2 norm of the gradient before clipping."""
    tokens: int
    """The number of tokens in the step's rows, without padding."""
    tokens_per_second: float | None
    time: datetime
    metrics: Metrics = Field(default_factory=dict)
    """Further metrics of the task by name, means over the same tokens as the loss."""


class EvaluationLine(StatusModel):
    """The numbers of a validation."""

    step: int
    epoch: float
    eval_loss: float
    """The mean over the tokens of the validation set that count."""
    perplexity: Annotated[float | None, Field(exclude_if=lambda perplexity: perplexity is None)]
    """None where that says nothing, as of pairs of answers; then it is left out of what is written."""
    checkpoint: str | None
    """The name of the checkpoint that holds the validated model; None before training."""
    time: datetime
    metrics: Metrics = Field(default_factory=dict)
    """Further metrics of the task by name, means over the same tokens as the loss."""


def numbers_of(line: StepLine | EvaluationLine) -> dict[str, float]:
    """The numbers of a line that a tracker plots, by their names in metrics.jsonl; without `step`."""
    numbers: dict[str, float] = line.model_dump(
        by_alias=True, exclude={"step", "time", "checkpoint", "metrics"}, exclude_none=True
    )
    return {**line.metrics, **numbers}
