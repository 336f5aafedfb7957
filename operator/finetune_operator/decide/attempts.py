"""Why an attempt ended, and whether another one makes sense."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from finetune_api.failure import FailureClass
from finetune_api.status import Failure, ProgressRecord
from finetune_operator.decide.conditions import shortened
from finetune_operator.decide.obstacles import Obstacle, out_of_memory
from finetune_operator.names import ATTEMPT
from finetune_operator.observed import Observed, RayJob

RETRIED = frozenset({FailureClass.NODE_LOST, FailureClass.STORAGE_ERROR})
"""What another attempt may cure. The user's errors and a loss that diverged would only come again, and so
does a lack of memory."""

FIRST_BACKOFF = timedelta(seconds=10)
LONGEST_BACKOFF = timedelta(minutes=6)
"""As a Kubernetes Job's: 10 s, 20 s, 40 s, ... up to 6 minutes."""

_STOPPED = ("143", "-15")
"""Exit codes of a driver that SIGTERM has ended: its node is taken away."""

_OBSTACLE_CLASSES = {
    Obstacle.UNSCHEDULABLE: FailureClass.UNSCHEDULABLE,
    Obstacle.REFUSED: FailureClass.UNSCHEDULABLE,
    Obstacle.IMAGE_PULL: FailureClass.IMAGE_PULL,
    Obstacle.OUT_OF_MEMORY: FailureClass.OUT_OF_MEMORY,
}


def is_retried(failure: Failure, attempt: int, backoff_limit: int) -> bool:
    """Whether another attempt follows the one with this number, counted from 1."""
    return failure.failure_class in RETRIED and attempt <= backoff_limit


def next_attempt_at(ended: datetime, attempt: int) -> datetime:
    """When the attempt after the one with this number may begin."""
    doubled: timedelta = FIRST_BACKOFF * 2 ** min(attempt - 1, 10)
    return ended + min(doubled, LONGEST_BACKOFF)


def failure_of_attempt(seen: Observed, ray_job: RayJob, record: ProgressRecord | None) -> Failure:
    """Why the RayJob of the current attempt did not succeed.

    The trainer knows best, if it could say so in this attempt's record; then what KubeRay and the pods say.
    """
    killed = _killed_for_memory(seen)
    said = record.failure if record is not None and record.attempt == seen.job.attempt else None
    if said is not None and not (killed is not None and said.failure_class is FailureClass.NODE_LOST):
        return said
    status = ray_job.status
    if status.job_deployment_status == "ValidationFailed":
        return _failure(
            FailureClass.INVALID_SPEC, f"KubeRay refuses RayJob {ray_job.metadata.name}: {status.message}"
        )
    if killed is not None:
        return killed
    if status.reason == "PreRunningDeadlineExceeded":
        return _never_started(seen)
    if status.reason == "DeadlineExceeded":
        return _failure(
            FailureClass.DEADLINE_EXCEEDED, "the job took longer than spec.run_policy.active_deadline_seconds"
        )
    left = re.search(r"exit code (-?\d+)", status.message)
    if status.job_status == "STOPPED" or (left is not None and left[1] in _STOPPED):
        return _failure(
            FailureClass.NODE_LOST, "the training was stopped from outside, and not by this operator"
        )
    if left is not None:
        return _failure(
            FailureClass.UNKNOWN,
            f"the trainer's driver ended with {left[0]} and without a word; its log: kubectl logs"
            f" job/{ray_job.metadata.name}",
        )
    why = status.reason or "no reason given"
    return _failure(
        FailureClass.NODE_LOST, f"the head of the Ray cluster, or the way to it, was lost ({why})"
    )


def _never_started(seen: Observed) -> Failure:
    """The pods are gone when KubeRay gives up: what they waited for is what was seen last."""
    last = next(
        (condition for condition in seen.job.status.conditions if condition.type == "ClusterReady"), None
    )
    obstacle = Obstacle(last.reason) if last is not None and last.reason in list(Obstacle) else None
    failure_class = (
        _OBSTACLE_CLASSES.get(obstacle, FailureClass.DEADLINE_EXCEEDED)
        if obstacle
        else FailureClass.DEADLINE_EXCEEDED
    )
    waited_for = last.message if last is not None and obstacle else "the Ray cluster was not ready"
    return _failure(
        failure_class,
        f"the pods were not ready within spec.run_policy.starting_deadline_seconds; at last: {waited_for}",
    )


def _killed_for_memory(seen: Observed) -> Failure | None:
    attempt = str(seen.job.attempt)
    found = out_of_memory(pod for pod in seen.pods if pod.metadata.labels.get(ATTEMPT, attempt) == attempt)
    if found is not None:
        return _failure(FailureClass.OUT_OF_MEMORY, found.message)
    last = next(
        (condition for condition in seen.job.status.conditions if condition.type == "ClusterReady"), None
    )
    if last is not None and last.reason == Obstacle.OUT_OF_MEMORY:
        return _failure(FailureClass.OUT_OF_MEMORY, last.message)
    return None


def _failure(failure_class: FailureClass, message: str) -> Failure:
    return Failure(failure_class=failure_class, message=shortened(message))
