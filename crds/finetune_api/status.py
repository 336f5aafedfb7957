"""`status` of a FineTuneJob (camelCase, since Kubernetes tools read it), and the progress record it is made from."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_api.failure import FailureClass

Text = Annotated[str, Field(max_length=1024)]
LongText = Annotated[str, Field(max_length=32768)]
Name = Annotated[str, Field(max_length=253)]
Path = Annotated[str, Field(max_length=4096)]
Count = Annotated[int, Field(ge=0, le=2**53)]


class StatusModel(BaseModel):
    """Base of all status models: camelCase outside, snake_case inside, nothing unknown."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", ser_json_inf_nan="strings")


class Phase(StrEnum):
    """The one-word summary of a job."""

    PENDING = "Pending"
    QUEUED = "Queued"
    STARTING = "Starting"
    RUNNING = "Running"
    RETRYING = "Retrying"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Condition(StatusModel):
    """A Kubernetes condition (metav1.Condition)."""

    type: Literal["Accepted", "ClusterReady", "Training", "Succeeded", "Stalled"]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    message: LongText
    observed_generation: Count | None = None
    last_transition_time: datetime


class Workers(StatusModel):
    """Worker pods of the Ray cluster."""

    desired: Count
    ready: Count


class Plan(StatusModel):
    """What is trained: sizes counted from the data and the model, and the numbers computed from them."""

    rows: Count
    """Training rows."""
    validation_rows: Count
    """Validation rows; 0 without `valid_path`."""
    tokens: Count
    """Tokens of the training rows after truncation, an epoch's worth."""
    truncated_rows: Count
    """Training and validation rows longer than `contextLength`."""
    context_length: Count
    """Tokens of the longest sequence that is trained on."""
    effective_batch_size: Count
    """Rows of an optimizer step."""
    steps_per_epoch: Count
    """Optimizer steps in an epoch."""
    total_epochs: Count
    total_steps: Count
    checkpoint_epochs: Annotated[list[Count], Field(max_length=100_000)]
    """0-based indices of the epochs after which validation and checkpoint come."""
    trainable_parameters: Count
    total_parameters: Count
    """Of the base model and its adapters."""


class Progress(StatusModel):
    """How far training is."""

    epoch: Annotated[float, Field(ge=0)]
    """Epochs completed, a decimal: 2.37."""
    epochs: Text
    """Completed and planned epochs: `2/5`."""
    step: Count
    """Optimizer steps done."""
    percent: Annotated[int, Field(ge=0, le=100)]
    train_loss: float | None = None
    """Loss of the last optimizer step, mean over its trained tokens."""
    learning_rate: float | None = None
    """Learning rate of the last optimizer step."""
    grad_norm: float | None = None
    """L2 norm of the last step's gradient before clipping."""
    tokens_per_second: float | None = None
    """Tokens (without padding) of all devices, smoothed over the last steps."""
    tokens_trained: Count
    """Tokens (without padding) that went through the model in training so far."""
    estimated_completion_time: datetime | None = None
    last_update_time: datetime


class Evaluation(StatusModel):
    """The last validation."""

    epoch: Annotated[float, Field(ge=0)]
    """Epochs completed when it ran; 0 is the model before training."""
    loss: float
    """Mean over the trained tokens of the whole validation set."""
    perplexity: float
    """exp(loss)."""


class Checkpoint(StatusModel):
    """A complete checkpoint in storage."""

    name: Annotated[str, Field(pattern=r"^epoch-\d{1,9}$")]
    path: Path
    epoch: Count
    """Epochs completed when it was saved."""
    step: Count
    """Optimizer steps done when it was saved."""
    eval_loss: float | None = None
    """None without `valid_path`."""
    perplexity: float | None = None
    time: datetime
    best: bool = False
    latest: bool = False


class Failure(StatusModel):
    """Why the job failed."""

    failure_class: Annotated[FailureClass, Field(alias="class")]
    message: LongText


class FineTuneJobStatus(StatusModel):
    """The status subresource."""

    observed_generation: Count | None = None
    phase: Phase | None = None
    conditions: Annotated[list[Condition], Field(max_length=16)] = []
    message: LongText | None = None
    ray_job_name: Name | None = None
    ray_cluster_name: Name | None = None
    dashboard_url: Annotated[Text | None, Field(alias="dashboardURL")] = None
    workers: Workers | None = None
    accelerator_type: Text | None = None
    attempts: Count | None = None
    plan: Plan | None = None
    progress: Progress | None = None
    evaluation: Evaluation | None = None
    checkpoints: Annotated[list[Checkpoint], Field(max_length=1000)] = []
    best_checkpoint: Checkpoint | None = None
    latest_checkpoint: Checkpoint | None = None
    model_path: Path | None = None
    """Where the best model is: the path of `bestCheckpoint`."""
    failure: Failure | None = None
    start_time: datetime | None = None
    completion_time: datetime | None = None
    device_seconds: Annotated[float, Field(ge=0)] | None = None
    """Devices times the seconds they were held."""


class ProgressRecord(StatusModel):
    """What the trainer says of itself: the part of a status that only training knows."""

    version: Literal[1] = 1
    plan: Plan | None = None
    progress: Progress | None = None
    evaluation: Evaluation | None = None
    checkpoints: Annotated[list[Checkpoint], Field(max_length=1000)] = []
    failure: Failure | None = None
