"""Conditions of a status, as `kubectl wait` and kstatus read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from finetune_api.failure import FailureClass
from finetune_api.status import LONGEST_MESSAGE, Condition, shortened
from finetune_operator.decide.wait import Obstacle

ConditionType = Literal["Accepted", "ClusterReady", "Training", "Succeeded", "Reconciling", "Stalled"]
Truth = Literal["True", "False", "Unknown"]
Reason = Literal[
    "Valid",
    "ChangeIgnored",
    "Ready",
    "Preparing",
    "Queued",
    "CleaningUp",
    "Suspended",
    "Retrying",
    "Ended",
    "Starting",
    "Waiting",
    "Training",
    "RecordInvalid",
    "InProgress",
    "Progressing",
    "Succeeded",
]
"""Reasons of conditions, besides the obstacles of a cluster and the classes of failures."""

TYPES: tuple[ConditionType, ...] = (
    "Accepted",
    "ClusterReady",
    "Training",
    "Succeeded",
    "Reconciling",
    "Stalled",
)
"""The last two are kstatus's words: `Reconciling` for a resource on its way, `Stalled` for one that will not
get where it should, a job that has failed. A resource that is neither is where it should be."""


@dataclass(frozen=True)
class Finding:
    """What a condition says now."""

    status: Truth
    reason: Reason | Obstacle | FailureClass
    message: str = ""


def conditions(
    before: Sequence[Condition], findings: Mapping[ConditionType, Finding], generation: int, now: datetime
) -> list[Condition]:
    """The conditions with new findings; those without a new finding stay.

    `last_transition_time` changes only when `status` does, as metav1.Condition has it.
    """
    known = {condition.type: condition for condition in before}
    result: list[Condition] = []
    for kind in TYPES:
        old, finding = known.get(kind), findings.get(kind)
        if finding is None:
            if old is not None:
                result.append(old.model_copy(update={"observed_generation": generation}))
            continue
        same = old is not None and old.status == finding.status
        result.append(
            Condition(
                type=kind,
                status=finding.status,
                reason=finding.reason,
                message=shortened(finding.message, LONGEST_MESSAGE),
                observed_generation=generation,
                last_transition_time=old.last_transition_time if old is not None and same else now,
            )
        )
    return result


def reconciling(found: Sequence[Condition], message: str) -> Finding:
    """What the condition Reconciling says beside these: true until the job has succeeded or failed.

    `message` is where the job is, for people.
    """
    succeeded = condition(found, "Succeeded")
    if succeeded is not None and succeeded.status != "Unknown":
        return Finding("False", "Ended")
    return Finding("True", "Progressing", message)


def condition(among: Sequence[Condition], kind: ConditionType) -> Condition | None:
    """The condition of this type; None when there is none."""
    return next((each for each in among if each.type == kind), None)
