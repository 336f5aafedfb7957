"""The lines of `metrics.jsonl`: one for each optimizer step, for each validation, and for sample answers.

`step` is the number of optimizer steps done so far. Times are in UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

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
    """The name of the checkpoint that holds the validated model; None where none was saved."""
    time: datetime
    metrics: Metrics = Field(default_factory=dict)
    """Further metrics of the task by name, means over the same tokens as the loss."""


class Answer(StatusModel):
    """A question and what the model answers."""

    prompt: str
    """What was asked last, as it was written."""
    answer: str
    expected: Annotated[str | None, Field(exclude_if=lambda expected: expected is None)] = None
    """What the validation row answers; left out where there is none."""


class SampleLine(StatusModel):
    """Answers of the model as it is to `sample_prompts`."""

    step: int
    epoch: float
    samples: list[Answer]
    left_out: Annotated[int, Field(exclude_if=lambda count: not count)] = 0
    """Questions for which there was no time; left out of what is written when there are none."""
    seconds: float
    """What the answers took."""
    checkpoint: str | None
    """The name of the checkpoint that holds the model; None before training."""
    time: datetime


NumberLine = StepLine | EvaluationLine
Line = NumberLine | SampleLine
_LINE: TypeAdapter[Line] = TypeAdapter(Line)


@dataclass(frozen=True)
class Answers:
    """How the model answers now."""

    answers: list[Answer]
    left_out: int
    """How many questions got none."""
    seconds: float
    problem: str | None = None
    """Why, where that was not the time."""


def lines_in(text: str) -> Iterator[Line]:
    """The lines of a `metrics.jsonl`. What is none, as where a write was cut off, is left out."""
    return _parsed(text.splitlines())


def sample_lines_in(text: str) -> Iterator[SampleLine]:
    """Those with answers."""
    lines = (line for line in text.splitlines() if '"samples":' in line)
    return (line for line in _parsed(lines) if isinstance(line, SampleLine))


def _parsed(lines: Iterable[str]) -> Iterator[Line]:
    for line in lines:
        try:
            yield _LINE.validate_json(line)
        except ValidationError:
            continue


def numbers_of(line: NumberLine) -> dict[str, float]:
    """The numbers of a line that a tracker plots, by their names in metrics.jsonl; without `step`."""
    numbers: dict[str, float] = line.model_dump(
        by_alias=True, exclude={"step", "time", "checkpoint", "metrics"}, exclude_none=True
    )
    return {**line.metrics, **numbers}
