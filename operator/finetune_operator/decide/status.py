"""How a new status is made from the last one."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from finetune_api.status import LONGEST_MESSAGE, Failure, FineTuneJobStatus, Phase, Workers, shortened
from finetune_operator.children.placement import held_devices
from finetune_operator.decide.conditions import (
    ConditionType,
    Finding,
    condition,
    conditions,
    reconciling,
)
from finetune_operator.observed import Job


def updated(
    job: Job,
    status: FineTuneJobStatus,
    now: datetime,
    findings: Mapping[ConditionType, Finding],
    **changes: Any,  # noqa: ANN401 - fields of the status
) -> FineTuneJobStatus:
    """The status with these changes, conditions by these findings, and the generation of the job's spec.

    What the findings do not say of Reconciling follows from the other conditions.
    When the cluster ceases to be ready, the time for which devices were held is added to `device_seconds`.
    """
    if "message" in changes:
        changes["message"] = shortened(changes["message"], LONGEST_MESSAGE)
    generation = job.metadata.generation
    before = condition(status.conditions, "ClusterReady")
    found = conditions(status.conditions, findings, generation, now)
    if "Reconciling" not in findings:
        progress = reconciling(found, changes.get("message", status.message) or "")
        found = conditions(found, {"Reconciling": progress}, generation, now)
    after = condition(found, "ClusterReady")
    if before is not None and before.status == "True" and after is not None and after.status != "True":
        held = max(0.0, (now - before.last_transition_time).total_seconds())
        changes["device_seconds"] = round((status.device_seconds or 0.0) + held * held_devices(job.spec), 1)
    return FineTuneJobStatus.model_validate(
        {**status.model_dump(), **changes, "observed_generation": generation, "conditions": found}
    )


def failed(
    job: Job,
    status: FineTuneJobStatus,
    failure: Failure,
    now: datetime,
    *,
    ended: datetime | None = None,
    findings: Mapping[ConditionType, Finding] | None = None,
) -> FineTuneJobStatus:
    """The status of a job that has failed for good, at `ended` (default: now)."""
    reason, message = failure.failure_class, failure.message
    all_findings: dict[ConditionType, Finding] = {
        **(findings or {}),
        "ClusterReady": Finding("False", "Ended", "the cluster is given back"),
        "Training": Finding("False", reason, message),
        "Succeeded": Finding("False", reason, message),
        "Stalled": Finding("True", reason, message),
    }
    return updated(
        job,
        status,
        now,
        all_findings,
        phase=Phase.FAILED,
        message=message,
        failure=failure,
        completion_time=ended or now,
        workers=none_ready(status.workers),
    )


def none_ready(workers: Workers | None) -> Workers | None:
    """The workers of a job whose cluster is given back."""
    return workers.model_copy(update={"ready": 0}) if workers else None
