"""From the trainer's progress record to the status of its job: the same for a cluster and for one machine."""

from __future__ import annotations

from finetune_api.retention import best
from finetune_api.status import FineTuneJobStatus, Plan, Progress, ProgressRecord


def with_record(status: FineTuneJobStatus, record: ProgressRecord) -> FineTuneJobStatus:
    """The status with what the record says of plan, progress, validation, checkpoints and all that follows.

    What the record does not have yet stays as an earlier attempt left it. Phase, message and failure are not
    changed: whether a failure ends the job is not the trainer's to decide.
    """
    checkpoints = record.checkpoints
    if record.failure is not None and record.plan is None and not checkpoints:
        # The attempt failed before it could list the checkpoints in storage: those of earlier ones are there.
        checkpoints = status.checkpoints
    chosen = best(checkpoints)
    return status.model_copy(
        update={
            "plan": record.plan or status.plan,
            "progress": record.progress or status.progress,
            "evaluation": record.evaluation or status.evaluation,
            "samples": record.samples or status.samples,
            "stopped_early": record.stopped_early or status.stopped_early,
            "checkpoints": checkpoints,
            "warnings": record.warnings or status.warnings,
            "pushed": record.pushed or status.pushed,
            "best_checkpoint": chosen,
            "latest_checkpoint": next((each for each in checkpoints if each.latest), None),
            "model_path": chosen.path if chosen else None,
        }
    )


def trained(plan: Plan | None, progress: Progress | None, patience: int | None) -> str:
    """What a run that is over has trained, in words; `patience` is that of a run that was stopped early."""
    if patience is None or progress is None:
        return f"trained {plan.total_steps if plan else 0} steps"
    count = "the last checkpoint" if patience == 1 else f"the last {patience} checkpoints"
    return f"stopped early after epoch {progress.epoch:g}: {count} had no lower validation loss than before"
