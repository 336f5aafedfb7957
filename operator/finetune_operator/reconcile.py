"""Decides what happens with a job: from all that is known at a moment to what to make, to delete and to show. Pure.

It is level-based: every call looks at everything anew, so that an event that was lost, doubled or late
changes nothing, and an operator that died between any two calls goes on where the cluster is. What was
decided before is in the status, which is written before anything is made; a RayJob that should be there and
is not is made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from finetune_api.consistency import warnings
from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.manifest import KIND, read_spec
from finetune_api.paths import child, parent, run_directory_name
from finetune_api.record import with_record
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Failure, FineTuneJobStatus, Phase, ProgressRecord, Workers
from finetune_operator.children import RAY_JOB, children, unchecked_hash
from finetune_operator.conditions import ConditionType, Finding, Reason, condition, conditions, shortened
from finetune_operator.configuration import Configuration
from finetune_operator.ended import failure_of_attempt, is_retried, next_attempt_at
from finetune_operator.events import RECORD_INVALID, Event, turns
from finetune_operator.names import QUEUE, UNCHECKED_SPEC, ray_job_name
from finetune_operator.placement import Placement, held_devices, placement
from finetune_operator.pods import Manifest, PodSource
from finetune_operator.record import RecordError, read_record
from finetune_operator.seen import Job, Observed, Pod, RayCluster, RayJob
from finetune_operator.waiting import Obstacle, Wait, waiting

ENDED = (Phase.SUCCEEDED, Phase.FAILED)
"""Phases that nothing comes after."""
SLOW_KUBERAY = timedelta(seconds=30)
"""KubeRay takes a RayJob up in a second; after so long something is wrong with it."""
LOST_POD = timedelta(seconds=90)
"""After a pod's grace: on a node that does not answer, Ray's processes end by themselves when they miss the
head for a minute."""
RELEASE_AFTER = timedelta(seconds=10)
"""How long KubeRay may take to free a deleted job's cluster."""


@dataclass(frozen=True)
class Deletion:
    """An object to delete; another one of that name is left alone."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True)
class Decision:
    """What to do, in this order: write the status, delete, make, tell."""

    status: FineTuneJobStatus
    delete: tuple[Deletion, ...] = ()
    create: tuple[Manifest, ...] = ()
    """Those that are there stay as they are."""
    events: tuple[Event, ...] = ()
    look_again: timedelta | None = None
    """When to look at the job again even if nothing happens."""


@dataclass(frozen=True)
class _Now:
    """What the steps of one decision share."""

    seen: Observed
    spec: FineTuneJobSpec
    configuration: Configuration
    time: datetime
    record: ProgressRecord | None
    record_problem: str | None

    @property
    def job(self) -> Job:
        return self.seen.job


def reconcile(seen: Observed, configuration: Configuration, now: datetime) -> Decision:
    """What to do about a job that exists."""
    job = seen.job
    if job.metadata.deletion_timestamp is not None:
        return Decision(job.status)
    if job.status.phase in ENDED:
        return _after_the_end(seen, now)
    try:
        spec = read_spec(job.spec)
        if seen.ray_job is None:
            _can_begin(job, spec, configuration)
        decision = _decide(_look(seen, spec, configuration, now))
    except FineTuneError as error:
        return _not_accepted(seen, error, now)
    return _told(job.status, decision, list(warnings(spec)))


def refused(job: Job, status: FineTuneJobStatus, what: str, *, final: bool, now: datetime) -> Decision:
    """What to show when the API server refused to make something; `final` when it always will."""
    if final:
        failure = Failure(failure_class=FailureClass.INVALID_SPEC, message=shortened(what))
        return _told(status, Decision(_failed(job, status, failure, now)))
    findings: dict[ConditionType, Finding] = {"ClusterReady": Finding("False", Obstacle.REFUSED, what)}
    shown = _updated(job, status, now, findings, message=what)
    return Decision(shown)


def release(
    ray_jobs: Sequence[RayJob], clusters: Sequence[RayCluster], now: datetime
) -> tuple[tuple[Deletion, ...], timedelta | None]:
    """What to delete of a job that is gone, and when to look again.

    Owner references delete everything, but a RayJob waits for KubeRay's finalizer; when KubeRay does not
    answer, its cluster must not hold the devices until it does.
    """
    going = [each for each in ray_jobs if each.metadata.deletion_timestamp is not None]
    if not going or not clusters:
        return (), None
    since = min(each.metadata.deletion_timestamp or now for each in going)
    left = since + RELEASE_AFTER - now
    if left > timedelta():
        return (), left
    return (
        tuple(Deletion("RayCluster", each.metadata.name, each.metadata.uid) for each in clusters),
        RELEASE_AFTER,
    )


def _can_begin(job: Job, spec: FineTuneJobSpec, configuration: Configuration) -> Placement:
    """What only this operator's configuration can tell. Raises FineTuneError with every problem."""
    problems: list[str] = []
    placed = None
    try:
        placed = placement(spec, configuration)
    except FineTuneError as error:
        problems += error.problems
    if job.status.run_directory is None and spec.storage is None and configuration.storage is None:
        problems.append(
            "spec.storage: is required, since this operator has no default; give {path: s3://..., gs://... or"
            " pvc://CLAIM/dir}"
        )
    if problems or placed is None:
        raise FineTuneError(FailureClass.INVALID_SPEC, *problems)
    return placed


def _not_accepted(seen: Observed, error: FineTuneError, now: datetime) -> Decision:
    job = seen.job
    if (
        seen.ray_job is not None and not seen.ray_job.has_ended
    ):  # accepted by an operator that was less strict: what runs is not disturbed
        return Decision(
            _updated(
                job,
                job.status,
                now,
                {},
                message=f"this version of the operator does not accept the spec: {error}",
            )
        )
    failure = Failure(failure_class=error.failure_class, message=shortened(str(error)))
    finding = Finding("False", failure.failure_class, failure.message)
    return _told(job.status, Decision(_failed(job, job.status, failure, now, {"Accepted": finding})))


def _look(seen: Observed, spec: FineTuneJobSpec, configuration: Configuration, now: datetime) -> _Now:
    record, problem = None, None
    if seen.record is not None and seen.job.status.run_directory is not None:
        try:
            record = read_record(seen.record, seen.job.status.run_directory, _run_name(seen.job))
        except RecordError as error:
            problem = f"the trainer's progress record is not shown: {error}"
    return _Now(seen, spec, configuration, now, record, problem)


def _decide(now: _Now) -> Decision:
    ray_job = now.seen.ray_job
    known = now.job.status if now.record is None else with_record(now.job.status, now.record)
    status = _started(known, ray_job)
    if ray_job is not None and ray_job.metadata.deletion_timestamp is None and ray_job.has_ended:
        return _attempt_ended(now, status, ray_job)
    if now.spec.suspend:
        return _suspended(now, status, ray_job)
    deadline = _deadline(now, status)
    if deadline is not None and deadline <= now.time:
        return _too_late(now, status, ray_job)
    if ray_job is None:
        return _begin(now, status, now.job.attempt)
    decision = _under_way(now, status, ray_job)
    left = None if deadline is None else deadline - now.time
    return _sooner(decision, left)


def _started(status: FineTuneJobStatus, ray_job: RayJob | None) -> FineTuneJobStatus:
    """The status with the time at which the job began.

    What waits in a queue has not, and what ended before a suspension counts no more.
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


def _begin(now: _Now, status: FineTuneJobStatus, attempt: int, failure: Failure | None = None) -> Decision:
    """Asks for an attempt's cluster, unless something of an earlier one is still there: two must never write to one run."""
    job = now.job
    left = _left_behind(now)
    if left is not None:
        shown = _updated(
            job,
            status,
            now.time,
            _not_training(now, "Waiting", Finding("False", "CleaningUp", left)),
            phase=_waiting_phase(status),
            message=left,
        )
        return Decision(shown, look_again=timedelta(seconds=5))
    placed = _can_begin(job, now.spec, now.configuration)
    directory = status.run_directory or _run_directory(now)
    storage = parent(directory, _run_name(job))
    source = PodSource(job.metadata, attempt, now.spec, placed, now.configuration, storage)
    deadline = _deadline(now, status)
    seconds = None if deadline is None else max(1, int((deadline - now.time).total_seconds()))
    if deadline is None and now.spec.run_policy.active_deadline_seconds is not None:
        seconds = now.spec.run_policy.active_deadline_seconds
    name = ray_job_name(job.metadata.name, job.metadata.uid, attempt)
    asked = Finding(
        "False", Obstacle.KUBERAY, f"asked for RayJob {name} ({placed.pods} x {placed.accelerator_type})"
    )
    before = condition(status.conditions, "ClusterReady")
    if before is not None and before.reason == Obstacle.REFUSED and status.ray_job_name == name:
        # It was refused and is asked for again: a status that went to and fro would wake the operator each
        # time.
        asked = Finding("False", Obstacle.REFUSED, before.message)
    shown = _updated(
        job,
        status,
        now.time,
        _not_training(now, "Starting", asked),
        phase=Phase.RETRYING if failure is not None else _waiting_phase(status),
        message=asked.message,
        attempts=attempt,
        ray_job_name=name,
        ray_cluster_name=None,
        dashboard_url=None,
        run_directory=directory,
        accelerator_type=placed.accelerator_type,
        workers=Workers(desired=placed.pods, ready=0),
        failure=failure or status.failure,
    )
    return Decision(shown, create=tuple(children(source, deadline_seconds=seconds)))


def _under_way(now: _Now, status: FineTuneJobStatus, ray_job: RayJob) -> Decision:
    """The RayJob is there and has not ended."""
    if ray_job.metadata.deletion_timestamp is not None:
        return _deleted_by_others(now, status, ray_job)
    desired = status.workers.desired if status.workers else now.spec.num_devices
    ready = sum(
        pod.is_worker and pod.is_ready and pod.metadata.deletion_timestamp is None for pod in now.seen.pods
    )
    seen: dict[str, Any] = {
        "workers": Workers(desired=desired, ready=ready),
        "ray_cluster_name": ray_job.status.ray_cluster_name or None,
        "dashboard_url": ray_job.status.dashboard_url or None,
        "ray_job_name": ray_job.metadata.name,
    }
    if ray_job.is_queued:
        return _queued(now, status, seen, ray_job)
    if not ray_job.is_running:
        return _starting(now, status, seen, ray_job, waiting(now.seen, desired))
    wait = None if ready >= desired else waiting(now.seen, desired)
    ready_finding = (
        Finding("False", wait.obstacle, wait.message)
        if wait
        else Finding("True", "Ready", "all pods are ready")
    )
    if not _trains(now):
        message = wait.message if wait else _preparing(now)
        findings = _not_training(now, "Starting", ready_finding)
        if now.record_problem is not None:
            message = now.record_problem
            findings["Training"] = Finding("False", RECORD_INVALID, message)
        return Decision(
            _updated(now.job, status, now.time, findings, phase=Phase.STARTING, message=message, **seen)
        )
    message = _training(status)
    findings = {
        **_accepted(now),
        "ClusterReady": ready_finding,
        "Training": Finding(
            "True", RECORD_INVALID if now.record_problem else "Training", now.record_problem or ""
        ),
        "Succeeded": Finding("Unknown", "InProgress"),
        "Stalled": Finding("False", "Progressing"),
    }
    shown = now.record_problem or (wait.message if wait else message)
    return Decision(
        _updated(
            now.job, status, now.time, findings, phase=Phase.RUNNING, message=shown, failure=None, **seen
        )
    )


def _trains(now: _Now) -> bool:
    """Whether this attempt has shown progress; a record that cannot be read any more does not undo that."""
    if now.record_problem is not None:
        return now.job.status.phase is Phase.RUNNING
    return (
        now.record is not None and now.record.attempt == now.job.attempt and now.record.progress is not None
    )


def _queued(now: _Now, status: FineTuneJobStatus, seen: dict[str, Any], ray_job: RayJob) -> Decision:
    queue = now.job.metadata.labels.get(QUEUE)
    name = ray_job.metadata.name
    what = (
        f"waiting for Kueue to admit RayJob {name} from queue {queue}"
        if queue
        else f"RayJob {name} is held back: its suspend is true"
    )
    findings = _not_training(now, "Queued", Finding("False", "Queued", what))
    return Decision(_updated(now.job, status, now.time, findings, phase=Phase.QUEUED, message=what, **seen))


def _starting(
    now: _Now, status: FineTuneJobStatus, seen: dict[str, Any], ray_job: RayJob, wait: Wait
) -> Decision:
    message, look_again = wait.message, None
    created = ray_job.metadata.creation_timestamp
    if wait.obstacle is Obstacle.KUBERAY:
        look_again = SLOW_KUBERAY
        if created is not None and now.time - created > SLOW_KUBERAY:
            message += (
                "; it has not answered, check that the KubeRay operator runs and watches this namespace"
            )
    findings = _not_training(now, "Starting", Finding("False", wait.obstacle, message))
    waits = Phase.PENDING if wait.obstacle is Obstacle.KUBERAY else Phase.STARTING
    return Decision(
        _updated(now.job, status, now.time, findings, phase=waits, message=message, **seen),
        look_again=look_again,
    )


def _deleted_by_others(now: _Now, status: FineTuneJobStatus, ray_job: RayJob) -> Decision:
    message = (
        f"RayJob {ray_job.metadata.name} is being deleted, which KubeRay has to finish; then the attempt"
        " begins again"
    )
    findings = _not_training(now, "Waiting", Finding("False", "CleaningUp", message))
    shown = _updated(now.job, status, now.time, findings, phase=_waiting_phase(status), message=message)
    return Decision(shown, look_again=timedelta(seconds=5))


def _given_back(status: FineTuneJobStatus) -> Workers | None:
    """The workers of a job that holds none any more."""
    return status.workers.model_copy(update={"ready": 0}) if status.workers else None


def _waiting_phase(status: FineTuneJobStatus) -> Phase:
    return Phase.RETRYING if status.phase is Phase.RETRYING else Phase.PENDING


def _suspended(now: _Now, status: FineTuneJobStatus, ray_job: RayJob | None) -> Decision:
    holding = _left_behind(now)
    saved = status.latest_checkpoint
    rest = f"suspend: false goes on from {saved.name}" if saved else "suspend: false begins it"
    message = f"suspended; {rest}"
    if holding is not None or ray_job is not None:
        message = f"giving the devices back: {holding or 'waiting for KubeRay'}"
    findings = _not_training(now, "Suspended", Finding("False", "Suspended", message))
    shown = _updated(
        now.job,
        status,
        now.time,
        findings,
        phase=Phase.SUSPENDED,
        message=message,
        ray_job_name=None,
        ray_cluster_name=None,
        dashboard_url=None,
        start_time=None,
        workers=_given_back(status),
    )
    delete = (
        (_deletion(ray_job),) if ray_job is not None and ray_job.metadata.deletion_timestamp is None else ()
    )
    return Decision(shown, delete=delete)


def _too_late(now: _Now, status: FineTuneJobStatus, ray_job: RayJob | None) -> Decision:
    seconds = now.spec.run_policy.active_deadline_seconds
    failure = Failure(
        failure_class=FailureClass.DEADLINE_EXCEEDED,
        message=(
            f"the job took longer than spec.run_policy.active_deadline_seconds ({seconds} s); its checkpoints"
            " are kept"
        ),
    )
    delete = (
        (_deletion(ray_job),) if ray_job is not None and ray_job.metadata.deletion_timestamp is None else ()
    )
    return Decision(_failed(now.job, status, failure, now.time), delete=delete)


def _attempt_ended(now: _Now, status: FineTuneJobStatus, ray_job: RayJob) -> Decision:
    ended = ray_job.status.end_time or now.time
    problem = _unfinished(now)
    says_so = now.record is not None and now.record.finished
    if problem is None and (ray_job.has_succeeded or (ray_job.is_out_of_sight and says_so)):
        return Decision(_succeeded(now, status, ended))
    if problem is not None and ray_job.has_succeeded:
        return Decision(
            _failed(
                now.job,
                status,
                Failure(failure_class=FailureClass.UNKNOWN, message=problem),
                ended,
                time=now.time,
            )
        )
    failure = failure_of_attempt(now.seen, ray_job, now.record)
    attempt, limit = now.job.attempt, now.spec.run_policy.backoff_limit
    deadline = _deadline(now, status)
    extended = (
        failure.failure_class is FailureClass.DEADLINE_EXCEEDED
        and ray_job.status.reason == "DeadlineExceeded"
    )
    again = is_retried(failure, attempt, limit) or (extended and (deadline is None or deadline > now.time))
    if not again:
        if attempt > 1:
            message = f"{failure.message} (attempt {attempt} of at most {limit + 1})"
            failure = failure.model_copy(update={"message": shortened(message)})
        return Decision(_failed(now.job, status, failure, ended, time=now.time))
    if deadline is not None and deadline <= now.time:
        return _too_late(now, status, None)
    if now.spec.suspend:
        return _suspended(now, status, None)
    wait = next_attempt_at(ended, attempt) - now.time
    if wait <= timedelta() and _left_behind(now) is None:
        return _begin(now, status, attempt + 1, failure)
    return _sooner(_retrying(now, status, failure), max(wait, timedelta(seconds=1)))


def _retrying(now: _Now, status: FineTuneJobStatus, failure: Failure) -> Decision:
    message = (
        f"attempt {now.job.attempt} failed ({failure.failure_class}: {failure.message}); another one goes on"
        " from "
    )
    message += status.latest_checkpoint.name if status.latest_checkpoint else "the beginning"
    left = _left_behind(now)
    if left is not None:
        message += f"; {left}"
    findings = _not_training(now, "Retrying", Finding("False", "Retrying", message))
    shown = _updated(
        now.job, status, now.time, findings, phase=Phase.RETRYING, message=message, failure=failure
    )
    return Decision(shown)


def _succeeded(now: _Now, status: FineTuneJobStatus, ended: datetime) -> FineTuneJobStatus:
    chosen = status.best_checkpoint
    measured = (
        f" (validation loss {chosen.eval_loss:.4f})"
        if chosen is not None and chosen.eval_loss is not None
        else ""
    )
    steps = status.plan.total_steps if status.plan else 0
    message = f"trained {steps} steps; the best checkpoint is {chosen.name if chosen else ''}{measured}"
    findings: dict[ConditionType, Finding] = {
        **_accepted(now),
        "ClusterReady": Finding("False", "Ended", "the cluster is given back"),
        "Training": Finding("False", "Succeeded", message),
        "Succeeded": Finding("True", "Succeeded", message),
        "Stalled": Finding("False", "Succeeded"),
    }
    return _updated(
        now.job,
        status,
        now.time,
        findings,
        phase=Phase.SUCCEEDED,
        message=message,
        completion_time=ended,
        workers=_given_back(status),
        failure=None,
    )


def _failed(
    job: Job,
    status: FineTuneJobStatus,
    failure: Failure,
    ended: datetime,
    findings: Mapping[ConditionType, Finding] | None = None,
    *,
    time: datetime | None = None,
) -> FineTuneJobStatus:
    reason, message = failure.failure_class, failure.message
    all_findings: dict[ConditionType, Finding] = {
        **(findings or {}),
        "ClusterReady": Finding("False", "Ended", "the cluster is given back"),
        "Training": Finding("False", reason, message),
        "Succeeded": Finding("False", reason, message),
        "Stalled": Finding("True", reason, message),
    }
    return _updated(
        job,
        status,
        time or ended,
        all_findings,
        phase=Phase.FAILED,
        message=message,
        failure=failure,
        completion_time=ended,
        workers=_given_back(status),
    )


def _after_the_end(seen: Observed, now: datetime) -> Decision:
    """A job that has ended stays as it is, but for the generation that it shows, until its time to live is over."""
    job, status = seen.job, seen.job.status
    shown = _updated(job, status, now, {})
    delete: list[Deletion] = []
    ray_job = seen.ray_job
    if ray_job is not None and not ray_job.has_ended and ray_job.metadata.deletion_timestamp is None:
        delete.append(_deletion(ray_job))
    try:
        ttl = read_spec(job.spec).run_policy.ttl_seconds_after_finished
    except FineTuneError:
        ttl = None  # a job whose spec is wrong is kept: it says what is wrong
    if ttl is None or status.completion_time is None:
        return Decision(shown, delete=tuple(delete))
    left = status.completion_time + timedelta(seconds=ttl) - now
    if left <= timedelta():
        return Decision(shown, delete=(Deletion(KIND, job.metadata.name, job.metadata.uid),))
    return Decision(shown, delete=tuple(delete), look_again=left)


def _unfinished(now: _Now) -> str | None:
    """What speaks against a success that Ray reports."""
    record, status = now.record, now.job.status
    if now.record_problem is not None:
        return f"the RayJob succeeded, but {now.record_problem}"
    if record is None or record.attempt != now.job.attempt or record.plan is None or record.progress is None:
        return "the RayJob succeeded, but the trainer left no record of it; was its own program run?"
    if record.progress.step < record.plan.total_steps or not record.checkpoints:
        where = (
            f"step {record.progress.step} of {record.plan.total_steps}, {len(record.checkpoints)} checkpoints"
        )
        return f"the RayJob succeeded, but its record says otherwise ({where}) in {status.run_directory}"
    return None


def _left_behind(now: _Now) -> str | None:
    """What of an earlier cluster may still be at work, in words."""
    alive = [pod.name for pod in now.seen.pods if _may_work(pod, now.time)]
    if alive:
        return f"waiting for pods of an earlier cluster to end: {', '.join(alive[:5])}"
    clusters = [
        cluster.metadata.name
        for cluster in now.seen.ray_clusters
        if cluster.metadata.deletion_timestamp is None
    ]
    return f"waiting for KubeRay to delete RayCluster {clusters[0]}" if clusters else None


def _may_work(pod: Pod, now: datetime) -> bool:
    if pod.has_ended:
        return False
    gone_by = pod.metadata.deletion_timestamp
    return gone_by is None or now < gone_by + LOST_POD


def _accepted(now: _Now) -> dict[ConditionType, Finding]:
    ray_job = now.seen.ray_job
    if ray_job is not None and ray_job.metadata.annotations.get(UNCHECKED_SPEC, "") not in (
        "",
        unchecked_hash(now.spec),
    ):
        what = (
            "spec was changed in more than suspend and run_policy; the change is ignored, make a new"
            " FineTuneJob for it"
        )
        return {"Accepted": Finding("True", "ChangeIgnored", what)}
    return {"Accepted": Finding("True", "Valid", _summary(now.spec))}


def _summary(spec: FineTuneJobSpec) -> str:
    method = "LoRA" if spec.lora_config is not None else "full-parameter training"
    return f"{method} of {spec.model_id} on {spec.num_devices} device{'' if spec.num_devices == 1 else 's'}"


def _not_training(now: _Now, reason: Reason, cluster: Finding) -> dict[ConditionType, Finding]:
    """The findings about a job that has not ended and does not train, for this reason; `cluster` is ClusterReady's."""
    return {
        **_accepted(now),
        "ClusterReady": cluster,
        "Training": Finding("False", reason),
        "Succeeded": Finding("Unknown", "InProgress"),
        "Stalled": Finding("False", "Progressing"),
    }


def _preparing(now: _Now) -> str:
    told = now.record is not None and now.record.attempt == now.job.attempt and now.record.plan is not None
    return "the workers load the model" if told else "the trainer reads and tokenizes the data"


def _training(status: FineTuneJobStatus) -> str:
    progress, plan = status.progress, status.plan
    if progress is None or plan is None:
        return "training"
    return f"training: step {progress.step} of {plan.total_steps}, epochs {progress.epochs}"


def _run_directory(now: _Now) -> str:
    storage = now.spec.storage.path if now.spec.storage is not None else now.configuration.storage
    assert storage is not None, "_can_begin has seen to it"
    return child(storage, _run_name(now.job))


def _run_name(job: Job) -> str:
    return run_directory_name(job.metadata.namespace, job.metadata.name, job.metadata.uid)


def _deadline(now: _Now, status: FineTuneJobStatus) -> datetime | None:
    seconds = now.spec.run_policy.active_deadline_seconds
    if seconds is None or status.start_time is None:
        return None
    return status.start_time + timedelta(seconds=seconds)


def _deletion(ray_job: RayJob) -> Deletion:
    return Deletion(RAY_JOB, ray_job.metadata.name, ray_job.metadata.uid)


def _sooner(decision: Decision, again: timedelta | None) -> Decision:
    times = [each for each in (decision.look_again, again) if each is not None]
    return replace(decision, look_again=min(times, default=None))


def _updated(
    job: Job,
    status: FineTuneJobStatus,
    now: datetime,
    findings: Mapping[ConditionType, Finding],
    **changes: Any,  # noqa: ANN401 - fields of the status
) -> FineTuneJobStatus:
    """The status with changes, new findings, and the device time of a cluster that is no longer ready added up."""
    if "message" in changes:
        changes["message"] = shortened(changes["message"])
    generation = job.metadata.generation
    before = condition(status.conditions, "ClusterReady")
    found = conditions(status.conditions, findings, generation, now)
    after = condition(found, "ClusterReady")
    if before is not None and before.status == "True" and after is not None and after.status != "True":
        held = max(0.0, (now - before.last_transition_time).total_seconds())
        changes["device_seconds"] = round((status.device_seconds or 0.0) + held * held_devices(job.spec), 1)
    return FineTuneJobStatus.model_validate(
        {**status.model_dump(), **changes, "observed_generation": generation, "conditions": found}
    )


def _told(before: FineTuneJobStatus, decision: Decision, remarks: Sequence[str] = ()) -> Decision:
    return replace(decision, events=tuple(turns(before, decision.status, remarks)))
