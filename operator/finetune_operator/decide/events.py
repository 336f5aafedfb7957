"""Kubernetes events about a job, as `kubectl describe` shows them: what changed between two statuses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from finetune_api.status import Checkpoint, FineTuneJobStatus, Phase, Plan, shortened
from finetune_operator.decide.conditions import condition

RECORD_INVALID: Final = "RecordInvalid"
"""The condition Training's reason, and the event's, when a progress record is not shown."""
LONGEST_EVENT = 1024
"""Characters, by the validation of events."""
Reason = Literal[
    "Accepted",
    "SpecRemark",
    "ChangeIgnored",
    "Preparing",
    "Prepared",
    "ClusterRequested",
    "Queued",
    "Running",
    "CheckpointSaved",
    "NewBest",
    "RecordInvalid",
    "Retrying",
    "Suspended",
    "Succeeded",
    "Failed",
]


@dataclass(frozen=True)
class Event:
    """A Kubernetes event about a FineTuneJob."""

    type: Literal["Normal", "Warning"]
    reason: Reason
    message: str


def transitions(
    before: FineTuneJobStatus, after: FineTuneJobStatus, remarks: Sequence[str] = ()
) -> list[Event]:
    """The events between two statuses of a job.

    `remarks` are warnings about its spec, which become events once, when the job is accepted.
    """
    return [
        Event(event.type, event.reason, shortened(event.message, LONGEST_EVENT))
        for event in _transitions(before, after, remarks)
    ]


def _transitions(
    before: FineTuneJobStatus, after: FineTuneJobStatus, remarks: Sequence[str]
) -> Iterator[Event]:
    accepted = condition(after.conditions, "Accepted")
    if accepted is not None and accepted.status == "True" and _status(before, "Accepted") != "True":
        yield Event("Normal", "Accepted", accepted.message)
        for remark in remarks:
            yield Event("Warning", "SpecRemark", remark)
    yield from _ignored_changes(before, after)
    if before.phase is Phase.PREPARING and before.plan is None and after.plan is not None:
        yield Event("Normal", "Prepared", _prepared(after.plan))
    if after.ray_job_name is not None and (after.ray_job_name, after.attempts) != (
        before.ray_job_name,
        before.attempts,
    ):
        yield Event("Normal", "ClusterRequested", f"RayJob {after.ray_job_name}: {_devices(after)}")
    yield from _checkpoints(before, after)
    yield from _record(before, after)
    if after.phase != before.phase:
        yield from _phase(after)


def _phase(after: FineTuneJobStatus) -> Iterator[Event]:
    message = after.message or ""
    failure = after.failure
    match after.phase:
        case Phase.PREPARING:
            yield Event("Normal", "Preparing", message)
        case Phase.QUEUED:
            yield Event("Normal", "Queued", message)
        case Phase.RUNNING:
            yield Event("Normal", "Running", f"training began on {_devices(after)}")
        case Phase.RETRYING:
            yield Event("Warning", "Retrying", message)
        case Phase.SUSPENDED:
            yield Event("Normal", "Suspended", message)
        case Phase.SUCCEEDED:
            yield Event("Normal", "Succeeded", message)
        case Phase.FAILED:
            yield Event(
                "Warning", "Failed", f"{failure.failure_class}: {failure.message}" if failure else message
            )
        case _:
            pass


def _checkpoints(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Iterator[Event]:
    newest = before.latest_checkpoint.step if before.latest_checkpoint else -1
    for checkpoint in after.checkpoints:
        if checkpoint.step > newest:
            yield Event(
                "Normal",
                "CheckpointSaved",
                f"{checkpoint.name} after {_where(checkpoint, after.plan)}{_loss(checkpoint)}",
            )
    best, old = after.best_checkpoint, before.best_checkpoint
    if best is not None and old is not None and best.name != old.name and best.eval_loss is not None:
        yield Event("Normal", "NewBest", f"{best.name}{_loss(best)}")


def _record(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Iterator[Event]:
    training, old = condition(after.conditions, "Training"), condition(before.conditions, "Training")
    if (
        training is not None
        and training.reason == RECORD_INVALID
        and (old is None or old.reason != RECORD_INVALID)
    ):
        yield Event("Warning", RECORD_INVALID, training.message)


def _ignored_changes(before: FineTuneJobStatus, after: FineTuneJobStatus) -> Iterator[Event]:
    accepted, old = condition(after.conditions, "Accepted"), condition(before.conditions, "Accepted")
    if (
        accepted is not None
        and accepted.reason == "ChangeIgnored"
        and (old is None or old.reason != "ChangeIgnored")
    ):
        yield Event("Warning", "ChangeIgnored", accepted.message)


def _prepared(plan: Plan) -> str:
    return f"{plan.rows} rows with {plan.tokens} tokens: {plan.in_epochs}"


def _where(checkpoint: Checkpoint, plan: Plan | None) -> str:
    if plan is not None and checkpoint.step % max(1, plan.steps_per_epoch):
        return f"step {checkpoint.step}"
    return f"epoch {checkpoint.epoch}"


def _loss(checkpoint: Checkpoint) -> str:
    if checkpoint.eval_loss is None:
        return ""
    perplexity = "" if checkpoint.perplexity is None else f", perplexity {checkpoint.perplexity:.2f}"
    return f": validation loss {checkpoint.eval_loss:.4f}{perplexity}"


def _devices(status: FineTuneJobStatus) -> str:
    workers = status.workers.desired if status.workers else 0
    return f"{workers} worker pod{'' if workers == 1 else 's'} with {status.accelerator_type}"


def _status(status: FineTuneJobStatus, kind: Literal["Accepted"]) -> str | None:
    found = condition(status.conditions, kind)
    return found.status if found is not None else None
