"""Why an attempt ended, and whether another one follows."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from finetune_api.failure import FailureClass
from finetune_api.status import LONGEST_MESSAGE, Failure, shortened
from finetune_operator.decide.conditions import condition
from finetune_operator.decide.killed_containers import out_of_memory
from finetune_operator.decide.lost_pods import lost_pod
from finetune_operator.decide.situation import Situation
from finetune_operator.decide.wait import Obstacle, Wait
from finetune_operator.observed import Observed, Pod, PrepareJob, RayJob

RETRIED = frozenset({FailureClass.NODE_LOST, FailureClass.STORAGE_ERROR})
"""What another attempt may cure. The user's errors and a loss that diverged would only come again, and so
does a lack of memory."""

MOST_INTERRUPTIONS = 500
"""How often a job may be preempted or drained, with its work saved, besides `backoff_limit`: as often as spot
nodes do it in weeks."""

FIRST_BACKOFF = timedelta(seconds=10)
LONGEST_BACKOFF = timedelta(minutes=6)
"""As a Kubernetes Job's: 10 s, 20 s, 40 s, ... up to 6 minutes."""

_STOPPED = ("143", "-15")
"""Exit codes of a driver that SIGTERM has ended: its node is taken away."""
_KILLED = (137, 143)
"""Exit codes of a container that was ended by a signal, of which 137 is SIGKILL."""

_OBSTACLE_CLASSES = {
    Obstacle.UNSCHEDULABLE: FailureClass.UNSCHEDULABLE,
    Obstacle.GATED: FailureClass.UNSCHEDULABLE,
    Obstacle.REFUSED: FailureClass.UNSCHEDULABLE,
    Obstacle.IMAGE_PULL: FailureClass.IMAGE_PULL,
    Obstacle.OUT_OF_MEMORY: FailureClass.OUT_OF_MEMORY,
    Obstacle.OUT_OF_STORAGE: FailureClass.INVALID_SPEC,
    Obstacle.LOST: FailureClass.NODE_LOST,
}
"""The class of an attempt that ended for an obstacle; for others it is that of the deadline.

A pod that has used more local storage than its limit would do so again: the limit, or the lack of one, is the
spec's.
"""

_CAUSES = (Obstacle.OUT_OF_MEMORY, Obstacle.OUT_OF_STORAGE, Obstacle.LOST)
"""What ends a pod that has worked, and with it the attempt."""


def is_retried(failure: Failure, attempt: int, backoff_limit: int) -> bool:
    """Whether another attempt follows this failure of the attempt with this number, counted from 1."""
    return failure.failure_class in RETRIED and attempt <= backoff_limit


def was_interrupted(situation: Situation, failure: Failure) -> bool:
    """Whether the attempt ended because its place was needed, or its node went, and its work was saved."""
    record = situation.own_record
    saved = record is not None and record.interrupted and record.progress is not None
    return saved and failure.failure_class is FailureClass.NODE_LOST


def next_attempt_at(ended: datetime, attempt: int) -> datetime:
    """When the attempt after the one with this number may begin."""
    doubled: timedelta = FIRST_BACKOFF * 2 ** min(attempt - 1, 10)
    return ended + min(doubled, LONGEST_BACKOFF)


def failure_of_attempt(situation: Situation, ray_job: RayJob) -> Failure:
    """Why the RayJob of the current attempt did not succeed.

    The trainer knows best, if it could report a failure in this attempt's record; else what KubeRay and the
    pods say decides.
    """
    observed, status = situation.observed, ray_job.status
    pods, lost = observed.pods_of_attempt, observed.lost_pods_of_attempt
    cause = _cause(observed, pods, lost, status.end_time or situation.now)
    reported = situation.own_record.failure if situation.own_record is not None else None
    if reported is not None:
        return _with_cause(reported, cause)
    if status.job_deployment_status == "ValidationFailed":
        return _failure(
            FailureClass.INVALID_SPEC, f"KubeRay refuses RayJob {ray_job.metadata.name}: {status.message}"
        )
    if cause is not None and cause.obstacle is not Obstacle.LOST:
        return _failure(_OBSTACLE_CLASSES[cause.obstacle], cause.message)
    if status.reason == "PreRunningDeadlineExceeded":
        return _never_started(observed)
    if status.reason == "DeadlineExceeded":
        return _failure(
            FailureClass.DEADLINE_EXCEEDED, "the job took longer than spec.run_policy.active_deadline_seconds"
        )
    if cause is not None:
        return _failure(FailureClass.NODE_LOST, cause.message)
    exit_code = re.search(r"exit code (-?\d+)", status.message)
    if status.job_status == "STOPPED" or (exit_code is not None and exit_code[1] in _STOPPED):
        return _failure(
            FailureClass.NODE_LOST, "the training was stopped from outside, and not by this operator"
        )
    if exit_code is not None:
        return _failure(
            FailureClass.UNKNOWN,
            f"the trainer's driver ended with {exit_code[0]} and without a word; its log: kubectl logs"
            f" job/{ray_job.metadata.name}",
        )
    why = status.reason or "no reason given"
    return _failure(
        FailureClass.NODE_LOST, f"the head of the Ray cluster, or the way to it, was lost ({why})"
    )


def prepare_ended_at(situation: Situation, prepare_job: PrepareJob) -> datetime:
    """When the Job that prepares has failed, or, where somebody's sidecar goes on, its own container."""
    own = [pod.own_container for pod in situation.observed.pods_that_prepare]
    ended = [each.state.terminated.finished_at for each in own if each is not None and each.state.terminated]
    return prepare_job.ended_at or next((time for time in ended if time is not None), situation.now)


def failure_of_prepare(situation: Situation, prepare_job: PrepareJob, ended: datetime) -> Failure:
    """Why the Job that prepares has failed, at `ended`."""
    observed, name = situation.observed, prepare_job.metadata.name
    pods, lost = observed.pods_that_prepare, observed.lost_pods_that_prepare
    cause = _cause(observed, pods, lost, ended)
    record = situation.prepare_record
    if record is not None and record.failure is not None:
        return _with_cause(record.failure, cause)
    if cause is not None:
        return _failure(_OBSTACLE_CLASSES[cause.obstacle], cause.message)
    code = next((code for code in map(_exit_code, pods) if code is not None), None)
    if code is None or code in _KILLED:
        return _failure(FailureClass.NODE_LOST, "Prepare was stopped from outside, and not by this operator")
    return _failure(
        FailureClass.UNKNOWN,
        f"Prepare ended with exit code {code} and without a word; its log: kubectl logs job/{name}",
    )


def _exit_code(pod: Pod) -> int | None:
    """What a pod's own container ended with; None while it has not."""
    own = pod.own_container
    ended = own.state.terminated if own is not None else None
    return ended.exit_code if ended is not None else None


def never_prepared(wait: Wait | None) -> Failure:
    """Prepare has not spoken in time; `wait` is what kept its program from running."""
    at_last, failure_class = "its program had started", FailureClass.DEADLINE_EXCEEDED
    if wait is not None:
        at_last, failure_class = wait.message, _OBSTACLE_CLASSES.get(wait.obstacle, failure_class)
    return _failure(
        failure_class,
        f"Prepare said nothing within spec.run_policy.starting_deadline_seconds; at last: {at_last}",
    )


def never_began(ray_job: RayJob, wait: Wait | None) -> Failure:
    """The trainer has not spoken in time; `wait` is what kept its program from being handed to Ray."""
    at_last = "its program had started" if ray_job.is_submitted else "its program was being handed to Ray"
    failure_class = FailureClass.DEADLINE_EXCEEDED
    if wait is not None:
        at_last, failure_class = wait.message, _OBSTACLE_CLASSES.get(wait.obstacle, failure_class)
    return _failure(
        failure_class,
        f"the trainer said nothing within spec.run_policy.starting_deadline_seconds; at last: {at_last}",
    )


def unfinished(situation: Situation) -> str | None:
    """What speaks against a success that KubeRay reports, in words; None when the record confirms it."""
    if situation.record_problem is not None:
        return f"the RayJob succeeded, but {situation.record_problem}"
    record = situation.own_record
    if record is None or record.plan is None or record.progress is None:
        return "the RayJob succeeded, but the trainer left no record of it; was its own program run?"
    step, steps = record.progress.step, record.plan.total_steps
    early = record.stopped_early and situation.spec.early_stopping_patience is not None
    if (step < steps and not early) or not record.checkpoints:
        where = f"step {step} of {steps}, {len(record.checkpoints)} checkpoints"
        directory = situation.job.status.run_directory
        return f"the RayJob succeeded, but its record says otherwise ({where}) in {directory}"
    return None


def _never_started(observed: Observed) -> Failure:
    """The pods were not ready in time; they are gone by now, so the last status says what they waited for."""
    last = condition(observed.job.status.conditions, "ClusterReady")
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


def _with_cause(reported: Failure, cause: Wait | None) -> Failure:
    """What the trainer reports; of a node that it has lost, what the pods say is why."""
    if cause is None or reported.failure_class is not FailureClass.NODE_LOST:
        return reported
    if cause.obstacle is Obstacle.LOST:
        return _failure(reported.failure_class, f"{reported.message}; {cause.message}")
    return _failure(_OBSTACLE_CLASSES[cause.obstacle], cause.message)


def _cause(observed: Observed, pods: list[Pod], lost: list[Pod], ended: datetime) -> Wait | None:
    """What has ended one of these pods, and so the attempt: as they say, or as they said at last."""
    found = out_of_memory(pods, ended) or lost_pod([*pods, *lost], ended)
    if found is not None:
        return found
    last = condition(observed.job.status.conditions, "ClusterReady")
    if last is not None and last.reason in _CAUSES:
        return Wait(Obstacle(last.reason), last.message)
    return None


def _failure(failure_class: FailureClass, message: str) -> Failure:
    return Failure(failure_class=failure_class, message=shortened(message, LONGEST_MESSAGE))
