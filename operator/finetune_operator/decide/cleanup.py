"""What is deleted and when, and what of an earlier cluster has to be gone before the next one is made."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from finetune_api.failure import FineTuneError
from finetune_api.manifest import KIND, read_spec
from finetune_operator.children.objects import JOB, RAY_JOB
from finetune_operator.decide.decision import Decision, Deletion
from finetune_operator.decide.status import updated
from finetune_operator.observed import Job, Observed, Pod, PrepareJob, RayCluster, RayJob

LOST_POD = timedelta(seconds=90)
"""How long after its grace a pod may still be at work: on a node that does not answer, Ray's processes end by
themselves when they miss the head for a minute."""
RELEASE_AFTER = timedelta(seconds=10)
"""How long KubeRay may take to free a deleted job's cluster."""


def left_behind(observed: Observed, now: datetime) -> str | None:
    """What of an earlier cluster may still be at work, in words; None when nothing is."""
    working = [pod for pod in observed.pods if _may_work(pod, now)]
    alive = [pod.name for pod in working if not pod.prepares]
    if not alive and working:
        return f"waiting for pod {working[0].name} to end, which prepares the job"
    if alive:
        return f"waiting for pods of an earlier cluster to end: {', '.join(alive[:5])}"
    clusters = [
        cluster.metadata.name
        for cluster in observed.ray_clusters
        if cluster.metadata.deletion_timestamp is None
    ]
    return f"waiting for KubeRay to delete RayCluster {clusters[0]}" if clusters else None


def deletion_of(*made: RayJob | PrepareJob | None) -> tuple[Deletion, ...]:
    """The deletions of these, but for those that are not there or are being deleted already."""
    return tuple(
        Deletion(RAY_JOB if isinstance(each, RayJob) else JOB, each.metadata.name, each.metadata.uid)
        for each in made
        if each is not None and each.metadata.deletion_timestamp is None
    )


def unfinished_prepare(observed: Observed) -> PrepareJob | None:
    """The Job that prepares, while it has not ended: one that has ended is kept for its log."""
    prepare_job = observed.prepare_job
    return prepare_job if prepare_job is not None and not prepare_job.has_ended else None


def kept_alive(observed: Observed) -> PrepareJob | None:
    """The Job that has prepared, when a container of somebody else keeps its pod from its end."""
    held = any(pod.has_ended and pod.still_runs for pod in observed.pods_that_prepare)
    return unfinished_prepare(observed) if held else None


def after_the_end(observed: Observed, now: datetime) -> Decision:
    """What to do about a job that has succeeded or failed.

    Its status follows the generation of its spec and changes in nothing else. What still runs, a RayJob or a
    Job that prepares, is deleted, and the job itself when `ttl_seconds_after_finished` are over.
    """
    job, status = observed.job, observed.job.status
    shown = updated(job, status, now, {})
    ray_job = observed.ray_job
    delete = deletion_of(
        ray_job if ray_job is not None and not ray_job.has_ended else None, unfinished_prepare(observed)
    )
    try:
        ttl = read_spec(job.spec).run_policy.ttl_seconds_after_finished
    except FineTuneError:
        ttl = None  # a job whose spec is wrong is kept: it says what is wrong
    if ttl is None or status.completion_time is None:
        return Decision(shown, delete=delete)
    left = status.completion_time + timedelta(seconds=ttl) - now
    if left <= timedelta():
        return Decision(shown, delete=(Deletion(KIND, job.metadata.name, job.metadata.uid),))
    return Decision(shown, delete=delete, requeue_after=left)


def is_done_with(job: Job, ray_jobs: Sequence[RayJob]) -> bool:
    """Whether a job has ended and `after_the_end` has nothing left to do, by these RayJobs of it.

    Without any RayJob there may be a Job that prepares.
    """
    policy = job.spec.get("run_policy")
    return (
        job.status.completion_time is not None
        and job.status.observed_generation == job.metadata.generation
        and not (isinstance(policy, dict) and "ttl_seconds_after_finished" in policy)
        and bool(ray_jobs)
        and all(each.has_ended for each in ray_jobs)
    )


def release(
    ray_jobs: Sequence[RayJob], clusters: Sequence[RayCluster], now: datetime
) -> tuple[tuple[Deletion, ...], timedelta | None]:
    """What to delete of a job that is gone, and after which time to reconcile it again.

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


def _may_work(pod: Pod, now: datetime) -> bool:
    if pod.has_ended:
        return False
    gone_by = pod.metadata.deletion_timestamp
    return gone_by is None or now < gone_by + LOST_POD
