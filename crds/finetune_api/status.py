"""`status` of a FineTuneJob, and the progress record of the trainer that it is made from.

Names are camelCase outside, since Kubernetes tools read them.
"""

from __future__ import annotations

import math
import re
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_api.failure import FailureClass
from finetune_api.fields import VALIDATIONS

MOST_EPOCHS = 100_000
MOST_KEPT_CHECKPOINTS = 1000
MOST_METRICS = 32
MOST_SAMPLES = 4
LONGEST_TEXT = 1024
"""Characters of a warning, and of other texts of a line or two."""

LONGEST_MESSAGE = 32768
"""Characters of a message, which may have what other programs say."""

LONGEST_SAMPLE = 200
"""Characters of a question or an answer in a status; metrics.jsonl has all of it."""

_METRIC_NAME = "[a-zA-Z][A-Za-z0-9_/.-]{0,62}"
_METRIC_NAMES = "names are a letter and at most 62 of letters, digits, `_`, `/`, `.` and `-`"


def _measured(number: float) -> float:
    return float(f"{number:.7g}")


def _finite_perplexity(number: object) -> object:
    return sys.float_info.max if number == math.inf else number


def _named(metrics: dict[str, float]) -> dict[str, float]:
    if not all(re.fullmatch(_METRIC_NAME, name) for name in metrics):
        raise ValueError(_METRIC_NAMES)
    return metrics


def _instant(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC).replace(microsecond=0)
    except OverflowError as error:
        raise ValueError("the time is out of range") from error


def shortened(text: str, most: int) -> str:
    """The beginning of a text, of `most` characters in all, with an ellipsis where something is left out."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
LongText = Annotated[str, Field(max_length=LONGEST_MESSAGE)]
SampleText = Annotated[str, Field(max_length=LONGEST_SAMPLE)]
Name = Annotated[str, Field(max_length=253)]
Path = Annotated[str, Field(max_length=4096)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
"""JSON, and with it a status, has neither infinity nor NaN."""
Measured = Annotated[Finite, AfterValidator(_measured)]
"""A measured number to seven significant digits, what fp32 holds."""
Perplexity = Annotated[Measured, BeforeValidator(_finite_perplexity)]
"""exp(loss), or the largest number there is where that overflows."""
Metrics = Annotated[
    dict[str, Measured],
    Field(
        max_length=MOST_METRICS,
        exclude_if=lambda metrics: not metrics,
        json_schema_extra={
            VALIDATIONS: [
                {"rule": f"self.all(name, name.matches('^{_METRIC_NAME}$'))", "message": _METRIC_NAMES}
            ]
        },
    ),
    AfterValidator(_named),
]
"""Measured numbers by name. Left out of what is written when there are none."""
Time = Annotated[AwareDatetime, AfterValidator(_instant)]
"""An instant in UTC and whole seconds, as Kubernetes writes times."""


class StatusModel(BaseModel):
    """Base of all status models: camelCase outside, snake_case inside, nothing unknown."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        use_attribute_docstrings=True,
        ser_json_inf_nan="strings",
    )


class Phase(StrEnum):
    """The one-word summary of a job."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    RETRYING = "Retrying"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Condition(StatusModel):
    """A Kubernetes condition (metav1.Condition)."""

    type: Literal["Accepted", "ClusterReady", "Training", "Succeeded", "Reconciling", "Stalled"]
    """What the condition is about."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[
        str, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    ]
    """Why, in one word for programs."""
    message: LongText
    """Why, for people."""
    observed_generation: Count | None = None
    """The generation of the spec that this is about."""
    last_transition_time: Time
    """When `status` last changed."""


class Workers(StatusModel):
    """Worker pods of the Ray cluster."""

    desired: Count
    """How many there should be."""
    ready: Count
    """How many are ready."""


class Plan(StatusModel):
    """What is trained: sizes counted from the data and the model, and the numbers computed from them."""

    rows: Count
    """Training rows; with `packing`, the sequences that they are packed into."""
    validation_rows: Count
    """Validation rows; 0 without `valid_path`."""
    tokens: Count
    """Tokens of the training rows after truncation, an epoch's worth."""
    truncated_rows: Count
    """Training and validation rows longer than `contextLength`."""
    context_length: Count
    """Tokens of the longest sequence that is trained on."""
    fill: Annotated[Finite, Field(ge=0, le=1)] | None = None
    """With `packing`, the part of the sequences that rows fill."""
    effective_batch_size: Count
    """Rows of an optimizer step."""
    steps_per_epoch: Count
    """Optimizer steps in an epoch."""
    total_epochs: Count
    """Epochs of the run; with `max_steps` the last one may be partial."""
    total_steps: Count
    """Optimizer steps of the run."""
    checkpoint_epochs: Annotated[list[Count], Field(max_length=MOST_EPOCHS)]
    """0-based indices of the epochs after which validation and checkpoint come; the last may be partial."""
    trainable_parameters: Count
    """Parameters that training changes."""
    total_parameters: Count
    """Of the base model and its adapters."""
    gradient_checkpointing: bool | None = None
    """Whether activations are recomputed instead of kept; set once the devices are known."""
    host_memory: Count | None = None
    """Bytes that training on a GPU takes of its host for each device, by estimate."""

    @property
    def in_epochs(self) -> str:
        """`3 epochs of 20 steps`, and where the last one is partial the number of steps."""
        whole = f"{self.total_epochs} epochs of {self.steps_per_epoch} steps"
        return f"{whole}{self.cut_short}"

    @property
    def cut_short(self) -> str:
        """`, of which 50 are trained` where the run ends in the middle of an epoch; else empty."""
        partial = self.total_steps < self.total_epochs * self.steps_per_epoch
        return f", of which {self.total_steps} are trained" if partial else ""


class Progress(StatusModel):
    """How far training is."""

    epoch: Annotated[Finite, Field(ge=0)]
    """Epochs completed, a decimal: 2.37."""
    epochs: Text
    """Completed and planned epochs: `2/5`."""
    step: Count
    """Optimizer steps done."""
    percent: Annotated[int, Field(ge=0, le=100)]
    """Of the run's optimizer steps."""
    train_loss: Measured | None = None
    """Loss of the last optimizer step, mean over its trained tokens or its pairs of answers."""
    learning_rate: Measured | None = None
    """Learning rate of the last optimizer step."""
    grad_norm: Measured | None = None
    """L2 norm of the last step's gradient before clipping."""
    tokens_per_second: Measured | None = None
    """Tokens (without padding) of all devices, smoothed over the last steps."""
    tokens_trained: Count
    """Tokens (without padding) that went through the model in training so far."""
    estimated_completion_time: Time | None = None
    """When the run ends at this pace."""
    last_update_time: Time
    """When this was true."""


class Evaluation(StatusModel):
    """The last validation."""

    epoch: Annotated[Finite, Field(ge=0)]
    """Epochs completed when it ran; 0 is the model before training."""
    loss: Measured
    """Mean over the whole validation set: over its trained tokens, or over its pairs of answers."""
    perplexity: Perplexity | None = None
    """exp(loss) of language modelling."""
    metrics: Metrics = {}
    """Further metrics of the task by name, such as `rewards/accuracies`; empty for language modelling."""


class Checkpoint(StatusModel):
    """A complete checkpoint in storage."""

    name: Annotated[str, Field(max_length=15, pattern=r"^epoch-\d{1,9}$")]
    """`epoch-4` after the fifth epoch, as LLMForge counts, or where `max_steps` ends the run in it."""
    path: Path
    """Where it is."""
    epoch: Count
    """Epochs completed when it was saved."""
    step: Count
    """Optimizer steps done when it was saved."""
    eval_loss: Measured | None = None
    """Validation loss; absent without `valid_path`."""
    perplexity: Perplexity | None = None
    """exp(evalLoss) of language modelling."""
    time: Time
    """When it was complete."""
    best: bool = False
    """It has the lowest validation loss of all; without `valid_path` it is the newest."""
    latest: bool = False
    """It is the newest."""


Warnings = Annotated[list[Text], Field(max_length=16, exclude_if=lambda warnings: not warnings)]
"""For people. Left out of what is written when there are none."""

Checkpoints = Annotated[list[Checkpoint], Field(max_length=MOST_KEPT_CHECKPOINTS + 1)]
"""The ones that are kept, and the newest."""


class Sample(StatusModel):
    """A question of `sample_prompts` and what the model answers, shortened; metrics.jsonl has all of it."""

    prompt: SampleText
    """What was asked last."""
    base_answer: SampleText | None = None
    """The answer before training."""
    answer: SampleText | None = None
    """The newest answer since."""
    expected: Annotated[SampleText | None, Field(exclude_if=lambda expected: expected is None)] = None
    """What the validation row answers; only where one was asked."""


Samples = Annotated[list[Sample], Field(max_length=MOST_SAMPLES, exclude_if=lambda samples: not samples)]
"""Of the first prompts. Left out of what is written when there are none."""


class PushedModel(StatusModel):
    """The model that was pushed to a hub at the end of the run, as `output` of the spec asks for."""

    repository: Annotated[str, Field(max_length=192)]
    """Its name there, OWNER/NAME."""
    revision: Annotated[str, Field(max_length=128)]
    """The commit that has it."""
    url: Annotated[Text, Field(pattern="^https?://")]
    """The page that shows this commit."""
    merged: bool = False
    """Whether it is a whole model that an adapter was merged into."""


class Failure(StatusModel):
    """Why the job failed."""

    failure_class: Annotated[FailureClass, Field(alias="class")]
    """Decides whether another attempt makes sense."""
    message: LongText
    """What happened, and what to do."""


class FineTuneJobStatus(StatusModel):
    """The status subresource."""

    observed_generation: Count | None = None
    """The generation of the spec that this status is about."""
    phase: Phase | None = None
    """The status in one word."""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = []
    """The status for programs, one entry per type."""
    message: LongText | None = None
    """The status for people: what is happening, or what is waited for."""
    ray_job_name: Name | None = None
    """The RayJob of the current attempt."""
    ray_cluster_name: Name | None = None
    """Its Ray cluster."""
    dashboard_url: Annotated[Text | None, Field(alias="dashboardURL")] = None
    """Ray's dashboard."""
    workers: Workers | None = None
    """Worker pods."""
    accelerator_type: Text | None = None
    """What the workers run on."""
    attempts: Count | None = None
    """Attempts so far, the current one included."""
    interruptions: Count | None = None
    """Attempts among them that a preemption or drain has ended, and whose work was saved."""
    plan: Plan | None = None
    """What is trained."""
    progress: Progress | None = None
    """How far training is."""
    evaluation: Evaluation | None = None
    """The last validation."""
    samples: Samples = []
    """Answers to `sample_prompts`, before training and now."""
    checkpoints: Checkpoints = []
    """Complete checkpoints that are in storage."""
    best_checkpoint: Checkpoint | None = None
    """The one with the lowest validation loss; without `valid_path` the newest."""
    latest_checkpoint: Checkpoint | None = None
    """The newest one."""
    stopped_early: bool | None = None
    """True of a run that ended before its last step, by `early_stopping_patience`."""
    warnings: Warnings = []
    """What was lost without harm to the training, such as numbers that an experiment tracker did not get."""
    run_directory: Path | None = None
    """Where checkpoints and metrics.jsonl are."""
    model_path: Path | None = None
    """Where the best model is: the path of `bestCheckpoint`."""
    pushed: PushedModel | None = None
    """What is on a hub, where `output` of the spec asks for it."""
    failure: Failure | None = None
    """Why the job failed."""
    start_time: Time | None = None
    """When the first attempt began, or the first since the job was last suspended, as in a Kubernetes Job."""
    completion_time: Time | None = None
    """When the job ended."""
    device_seconds: Annotated[Finite, Field(ge=0)] | None = None
    """Devices times the seconds they were held."""


class ProgressRecord(StatusModel):
    """What the trainer reports: the part of a status that only training knows."""

    version: Literal[1] = 1
    attempt: Annotated[int, Field(ge=1, le=1000)] = 1
    """The attempt that wrote it; a failure is that attempt's."""
    preparing: Annotated[bool, Field(exclude_if=lambda preparing: not preparing)] = False
    """Whether Prepare wrote it, before the attempt had a cluster. Left out of what is written when not."""
    doing: Annotated[Text | None, Field(exclude_if=lambda doing: doing is None)] = None
    """What is done between loading the model and the first step, or after the last one. Left out when that is
    nothing."""
    plan: Plan | None = None
    progress: Progress | None = None
    evaluation: Evaluation | None = None
    samples: Samples = []
    checkpoints: Checkpoints = []
    warnings: Warnings = []
    pushed: Annotated[PushedModel | None, Field(exclude_if=lambda pushed: pushed is None)] = None
    """What was pushed to a hub. Left out of what is written when nothing was."""
    failure: Failure | None = None
    finished: bool = False
    """Whether the run is over, and all that was to be saved is saved."""
    stopped_early: Annotated[bool, Field(exclude_if=lambda early: not early)] = False
    """Whether that was before its last step, by `early_stopping_patience`. Left out when not."""
    interrupted: bool = False
    """Whether the attempt was ended from outside, and all that it had trained is saved."""
