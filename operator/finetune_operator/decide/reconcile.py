"""Decides what happens with a job, from all that is known of it at one moment. Pure.

It is level-based: every call takes everything into account anew, so that an event that was lost, doubled or
late changes nothing, and an operator that died between any two calls resumes where the cluster is. What was
decided before is in the status, which is written before anything is made; a RayJob that should be there and
is not is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from finetune_api.consistency import early_names, warnings
from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.manifest import read_spec
from finetune_api.output import only_output_is_left
from finetune_api.paths import parent
from finetune_api.record import with_record
from finetune_api.status import LONGEST_MESSAGE, Failure, FineTuneJobStatus, shortened
from finetune_operator.children.objects import children, children_that_prepare
from finetune_operator.children.pods import PodSource
from finetune_operator.decide import phases
from finetune_operator.decide.acceptance import accepted_placement, must_prepare, new_run_directory
from finetune_operator.decide.attempts import (
    MOST_INTERRUPTIONS,
    failure_of_attempt,
    failure_of_prepare,
    is_retried,
    never_began,
    never_prepared,
    next_attempt_at,
    prepare_ended_at,
    unfinished,
    was_interrupted,
)
from finetune_operator.decide.cleanup import (
    after_the_end,
    deletion_of,
    kept_alive,
    left_behind,
    unfinished_prepare,
)
from finetune_operator.decide.conditions import ConditionType, Finding
from finetune_operator.decide.decision import Decision
from finetune_operator.decide.events import transitions
from finetune_operator.decide.obstacles import (
    SLOW_SUBMITTER,
    first_obstacle,
    prepare_obstacle,
    submitter_obstacle,
)
from finetune_operator.decide.recovery import recovered
from finetune_operator.decide.situation import Situation, run_name, situation_of
from finetune_operator.decide.status import failed, updated
from finetune_operator.decide.wait import Obstacle, Wait
from finetune_operator.names import prepare_job_name, ray_job_name
from finetune_operator.observed import Job, Observed, PrepareJob, RayJob
from finetune_operator.settings.configuration import Configuration

SLOW_KUBERAY = timedelta(seconds=30)
"""KubeRay takes up a RayJob in a second; after so long something is wrong with it."""
RECHECK_CLEANUP = timedelta(seconds=5)
"""How often what keeps the next cluster back is checked: that it is gone may come without an event."""
END_OF_PREPARE = timedelta(seconds=1)
"""Kubernetes says that a Job has ended about a second after its pod has; the operator does not watch Jobs."""


def reconcile(observed: Observed, configuration: Configuration, now: datetime) -> Decision:
    """What to do about a job that exists."""
    job = observed.job
    # The garbage collector deletes all that the job owns.
    if job.metadata.deletion_timestamp is not None:
        return Decision(job.status)
    if job.status.phase in phases.ENDED:
        return after_the_end(observed, now)
    try:
        spec = read_spec(job.spec)
        observed = recovered(observed, spec, configuration)
        if observed.ray_job is None:
            accepted_placement(observed.job, spec, configuration)
        decision = _decide(situation_of(observed, spec, configuration, now))
    except FineTuneError as error:
        return _not_accepted(observed, error, now)
    remarks = [*early_names(job.spec), *warnings(spec, configuration.devices)]
    return _with_events(decision, observed.job.status, remarks)


def refused(job: Job, status: FineTuneJobStatus, message: str, *, final: bool, now: datetime) -> Decision:
    """What to show when the API server refuses to create an object; `final` when it always will."""
    if final:
        failure = Failure(
            failure_class=FailureClass.INVALID_SPEC, message=shortened(message, LONGEST_MESSAGE)
        )
        return _with_events(Decision(failed(job, status, failure, now)), status)
    findings: dict[ConditionType, Finding] = {"ClusterReady": Finding("False", Obstacle.REFUSED, message)}
    return Decision(updated(job, status, now, findings, message=message))


def _not_accepted(observed: Observed, error: FineTuneError, now: datetime) -> Decision:
    job = observed.job
    # An operator that was less strict accepted it: what runs is not disturbed.
    if observed.ray_job is not None and not observed.ray_job.has_ended:
        message = f"this version of the operator does not accept the spec: {error}"
        return Decision(updated(job, job.status, now, {}, message=message))
    failure = Failure(failure_class=error.failure_class, message=shortened(str(error), LONGEST_MESSAGE))
    finding = Finding("False", failure.failure_class, failure.message)
    status = failed(job, job.status, failure, now, findings={"Accepted": finding})
    return _with_events(Decision(status), job.status)


def _decide(situation: Situation) -> Decision:
    ray_job, now = situation.observed.ray_job, situation.now
    status = situation.job.status
    if situation.record is not None:
        status = with_record(status, situation.record)
    status = _with_start_time(status, ray_job)

    # The attempt is over: the job succeeds or fails, or another attempt follows. It goes before `suspend` and
    # the deadline, so that a job that has succeeded is never shown otherwise.
    if ray_job is not None and ray_job.metadata.deletion_timestamp is None and ray_job.has_ended:
        return _attempt_ended(situation, status, ray_job)

    # The RayJob is gone, and the run was finished: nothing is made for it again.
    finished = situation.finished_at
    if ray_job is None and finished is not None and unfinished(situation) is None:
        return Decision(phases.succeeded(situation, status, finished))

    # `suspend` is true: the RayJob is deleted, and with it the cluster.
    if situation.spec.suspend:
        return _suspend(situation, status, ray_job)

    # `active_deadline_seconds` are over: the job fails, whatever it is at.
    deadline = situation.deadline(status)
    if deadline is not None and deadline <= now:
        return _deadline_exceeded(situation, status, ray_job)

    # The current attempt has no RayJob: it is new, is prepared, was resumed, or somebody deleted its RayJob.
    if ray_job is None:
        return _before_cluster(situation, status)

    # The attempt is under way: the status follows the cluster and the trainer, until the deadline at most.
    decision = _under_way(situation, status, ray_job)
    return decision.requeued(None if deadline is None else deadline - now)


def _with_start_time(status: FineTuneJobStatus, ray_job: RayJob | None) -> FineTuneJobStatus:
    """The status with the time at which the job began, when it has.

    A job that waits in a queue has not begun, and a RayJob that ended before a suspension counts no more.
    """
    if (
        status.start_time is not None
        or ray_job is None
        or ray_job.metadata.deletion_timestamp is not None
        or ray_job.is_queued
    ):
        return status
    if ray_job.has_ended and ray_job.metadata.name != status.ray_job_name:
        return status
    return status.model_copy(update={"start_time": ray_job.status.start_time})


def _before_cluster(situation: Situation, status: FineTuneJobStatus) -> Decision:
    """What to do while the current attempt has no RayJob; it may have a Job that prepares."""
    job, observed = situation.job, situation.observed
    placed = accepted_placement(job, situation.spec, situation.configuration)
    if must_prepare(situation, status, placed) and observed.prepare_job is not None:
        return _preparing(situation, status, observed.prepare_job)

    # There is a plan, and what has made it ends by itself; or it is not wanted any more, and is ended.
    prepare_job = unfinished_prepare(observed)
    if prepare_job is not None and any(not pod.has_ended for pod in observed.pods_that_prepare):
        delete = () if status.plan is not None else deletion_of(prepare_job)
        shown = phases.preparing(situation, status, prepare_job, None)
        return Decision(shown, delete=delete, requeue_after=RECHECK_CLEANUP)
    delete = deletion_of(kept_alive(observed) if status.plan is not None else prepare_job)
    return replace(_begin(situation, status, job.attempt), delete=delete)


def _preparing(situation: Situation, status: FineTuneJobStatus, prepare_job: PrepareJob) -> Decision:
    """What to do while there is a Job that prepares, and no plan yet."""
    job, observed, now = situation.job, situation.observed, situation.now
    # Somebody deleted it.
    if prepare_job.metadata.deletion_timestamp is not None:
        message = f"Job {prepare_job.metadata.name} is being deleted; then the job is prepared again"
        return Decision(phases.cleaning_up(situation, status, message), requeue_after=RECHECK_CLEANUP)

    # It has failed: the job fails, or another attempt prepares it.
    held = kept_alive(observed)
    if prepare_job.has_ended or held is not None:
        ended = prepare_ended_at(situation, prepare_job)
        failure = failure_of_prepare(situation, prepare_job, ended)
        decision = _failed_for_now(situation, status, failure, ended)
        # Not before: without it, the same attempt would begin again.
        return replace(decision, delete=deletion_of(held)) if decision.create else decision

    # It speaks in time, and ends in time.
    record = situation.prepare_record
    wait = prepare_obstacle(observed, now) if record is None else None
    deadline = situation.prepare_deadline(prepare_job)
    if deadline is not None and deadline <= now:
        if situation.prepare_has_spoken:
            return _deadline_exceeded(situation, status, None)
        return Decision(failed(job, status, never_prepared(wait), now), delete=deletion_of(prepare_job))

    shown = phases.preparing(situation, status, prepare_job, wait)
    pods = observed.pods_that_prepare
    ends = (record is not None and record.failure is not None) or any(pod.has_ended for pod in pods)
    soon = END_OF_PREPARE if ends else RECHECK_CLEANUP if not pods else None
    return Decision(shown, requeue_after=soon).requeued(None if deadline is None else deadline - now)


def _begin(
    situation: Situation, status: FineTuneJobStatus, attempt: int, failure: Failure | None = None
) -> Decision:
    """Asks for an attempt's cluster, once nothing of an earlier one is left: two must never write to one run.

    Where the job has to be prepared before that, it asks for the Job that does. `failure` is why the attempt
    before this one ended.
    """
    job, spec, configuration = situation.job, situation.spec, situation.configuration
    left = left_behind(situation.observed, situation.now)
    if left is not None:
        return Decision(phases.cleaning_up(situation, status, left), requeue_after=RECHECK_CLEANUP)
    placed = accepted_placement(job, spec, configuration)
    run_directory = status.run_directory or new_run_directory(situation)
    storage = parent(run_directory, run_name(job))
    needed = status.plan.host_memory if status.plan is not None else None
    source = PodSource(job.metadata, attempt, spec, placed, configuration, storage, needed)
    if must_prepare(situation, status, placed):
        shown = phases.prepare_requested(
            situation,
            status,
            placed,
            attempt=attempt,
            prepare_job_name=prepare_job_name(job.metadata.name, job.metadata.uid, attempt),
            run_directory=run_directory,
            failure=failure,
        )
        return Decision(shown, create=tuple(children_that_prepare(source)), requeue_after=RECHECK_CLEANUP)
    deadline = situation.deadline(status)
    seconds = spec.run_policy.active_deadline_seconds
    if deadline is not None:
        seconds = max(1, int((deadline - situation.now).total_seconds()))
    shown = phases.requested(
        situation,
        status,
        placed,
        attempt=attempt,
        ray_job_name=ray_job_name(job.metadata.name, job.metadata.uid, attempt),
        run_directory=run_directory,
        failure=failure,
    )
    return Decision(shown, create=tuple(children(source, deadline_seconds=seconds)))


def _under_way(situation: Situation, status: FineTuneJobStatus, ray_job: RayJob) -> Decision:
    """What to do while the attempt's RayJob exists and has not ended."""
    # Somebody deleted it. KubeRay has to finish that before the same attempt can be asked for again.
    if ray_job.metadata.deletion_timestamp is not None:
        message = (
            f"RayJob {ray_job.metadata.name} is being deleted, which KubeRay has to finish;"
            " then the attempt begins again"
        )
        return Decision(phases.cleaning_up(situation, status, message), requeue_after=RECHECK_CLEANUP)
    status = phases.with_cluster(situation, status, ray_job)

    # It is held back, as Kueue does until there is quota.
    if ray_job.is_queued:
        return Decision(phases.queued(situation, status, ray_job))

    assert status.workers is not None, "with_cluster has set them"
    workers = status.workers

    # KubeRay brings its cluster up.
    if not ray_job.is_running:
        wait = first_obstacle(situation.observed, workers.desired)
        if wait.obstacle is not Obstacle.KUBERAY:
            return Decision(phases.starting(situation, status, wait, kuberay_is_slow=False))
        created = ray_job.metadata.creation_timestamp
        slow = created is not None and situation.now - created > SLOW_KUBERAY
        shown = phases.starting(situation, status, wait, kuberay_is_slow=slow)
        return Decision(shown, requeue_after=SLOW_KUBERAY)

    missing = None
    if workers.ready < workers.desired:
        missing = first_obstacle(situation.observed, workers.desired)

    # Its cluster is up: the program is handed to Ray and starts, and the trainer speaks, all of it in time.
    if not situation.has_spoken:
        return _before_first_word(situation, status, ray_job, missing)

    # Its program runs: first it reads the data and loads the model, then it trains.
    if not situation.trains:
        return Decision(phases.before_training(situation, status, ray_job, missing))
    return Decision(phases.training(situation, status, missing))


def _before_first_word(
    situation: Situation, status: FineTuneJobStatus, ray_job: RayJob, missing: Wait | None
) -> Decision:
    """What to do while the trainer has said nothing; `missing` is what a cluster that lacks workers lacks."""
    wait = missing
    if wait is None and not ray_job.is_submitted:
        wait = submitter_obstacle(situation.observed, situation.now)
    shown = phases.before_training(situation, status, ray_job, wait)
    due = situation.first_word_due(ray_job)
    if due is None:
        return Decision(shown)
    if due <= situation.now:
        failure = never_began(ray_job, wait)
        return Decision(_given_up(situation, status, failure), delete=deletion_of(ray_job))
    soon = SLOW_SUBMITTER if wait is not None and wait.obstacle is Obstacle.STARTING else None
    return Decision(shown, requeue_after=soon).requeued(due - situation.now)


def _attempt_ended(situation: Situation, status: FineTuneJobStatus, ray_job: RayJob) -> Decision:
    job, now = situation.job, situation.now
    ended = ray_job.status.end_time or now
    problem = unfinished(situation)

    # The run is complete: whatever became of its program, or of KubeRay's view of it, after it said so.
    if problem is None and (ray_job.has_succeeded or situation.finished_at is not None):
        return Decision(phases.succeeded(situation, status, ended))

    # KubeRay reports a success that the record contradicts: another attempt would only end so again.
    if problem is not None and ray_job.has_succeeded:
        failure = Failure(failure_class=FailureClass.UNKNOWN, message=problem)
        return Decision(failed(job, status, failure, now, ended=ended))

    failure = failure_of_attempt(situation, ray_job)
    deadline = situation.deadline(status)
    extended = (
        failure.failure_class is FailureClass.DEADLINE_EXCEEDED
        and ray_job.status.reason == "DeadlineExceeded"
        and (deadline is None or deadline > now)
    )
    return _failed_for_now(situation, status, failure, ended, extended=extended)


def _failed_for_now(
    situation: Situation,
    status: FineTuneJobStatus,
    failure: Failure,
    ended: datetime,
    *,
    extended: bool = False,
) -> Decision:
    """The current attempt has failed, at `ended`: the job fails, or another attempt follows.

    `extended` says that it ran into a deadline that was raised since.
    """
    job, now, policy = situation.job, situation.now, situation.spec.run_policy
    # It failed for good: by its class, or after the last attempt; those whose work was saved when they were
    # interrupted have a limit of their own. A RayJob that ran into a deadline that was raised since is tried
    # again.
    interruptions, interrupted = status.interruptions or 0, was_interrupted(situation, failure)
    tried = max(1, job.attempt - interruptions)
    deadline = situation.deadline(status)
    if interrupted:
        retried, most = interruptions < MOST_INTERRUPTIONS, MOST_INTERRUPTIONS + tried
    else:
        retried = extended or is_retried(failure, tried, policy.backoff_limit)
        most = policy.backoff_limit + 1 + interruptions
    if not retried:
        if job.attempt > 1:
            message = f"{failure.message} (attempt {job.attempt} of at most {most})"
            failure = failure.model_copy(update={"message": shortened(message, LONGEST_MESSAGE)})
        return Decision(_given_up(situation, status, failure, ended))

    # Another attempt would follow, but for the deadline or `suspend`.
    if deadline is not None and deadline <= now:
        return _deadline_exceeded(situation, status, None)
    if situation.spec.suspend:
        return _suspend(situation, status, None)

    # It follows when its back-off is over and nothing of this attempt is left.
    wait = next_attempt_at(ended, 1 if interrupted else tried) - now
    if wait <= timedelta() and left_behind(situation.observed, now) is None:
        if interrupted:
            status = status.model_copy(update={"interruptions": interruptions + 1})
        return _begin(situation, status, job.attempt + 1, failure)
    shown = phases.retrying(situation, status, failure)
    return Decision(shown, requeue_after=max(wait, timedelta(seconds=1)))


def _given_up(
    situation: Situation, status: FineTuneJobStatus, failure: Failure, ended: datetime | None = None
) -> FineTuneJobStatus:
    """The job has failed for good, at `ended` (default: now).

    Where all was trained and saved, and only `output` was left, it has succeeded, with a warning.
    """
    if only_output_is_left(situation.spec, status):
        return phases.succeeded_without_output(situation, status, failure, ended or situation.now)
    return failed(situation.job, status, failure, situation.now, ended=ended)


def _suspend(situation: Situation, status: FineTuneJobStatus, ray_job: RayJob | None) -> Decision:
    delete = deletion_of(ray_job, unfinished_prepare(situation.observed))
    return Decision(phases.suspended(situation, status, ray_job), delete=delete)


def _deadline_exceeded(situation: Situation, status: FineTuneJobStatus, ray_job: RayJob | None) -> Decision:
    seconds = situation.spec.run_policy.active_deadline_seconds
    message = (
        f"the job took longer than spec.run_policy.active_deadline_seconds ({seconds} s);"
        " its checkpoints are kept"
    )
    failure = Failure(failure_class=FailureClass.DEADLINE_EXCEEDED, message=message)
    delete = deletion_of(ray_job, unfinished_prepare(situation.observed))
    return Decision(_given_up(situation, status, failure), delete=delete)


def _with_events(decision: Decision, before: FineTuneJobStatus, remarks: Sequence[str] = ()) -> Decision:
    return replace(decision, events=tuple(transitions(before, decision.status, remarks)))
