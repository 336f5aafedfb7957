"""What a Ray cluster that is not ready waits for: KubeRay, a node with room, an image, a quota.

And, once it is ready, what its program waits for until the trainer speaks; before it, what Prepare waits for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from finetune_operator.decide.killed_containers import more_for, out_of_memory, was_killed
from finetune_operator.decide.lost_pods import lost_pod
from finetune_operator.decide.wait import Obstacle, Wait, in_a_line
from finetune_operator.observed import ContainerStatus, Observed, Pod

_IMAGE_REASONS = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
)
_CONTAINER_REASONS = (
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "CrashLoopBackOff",
)
SLOW_SUBMITTER = timedelta(seconds=30)
"""The pod of a Job is there in a second; after so long it is likely that it may not be made."""


def waiting_for_kuberay(name: str) -> str:
    """What is said from asking for a RayJob until KubeRay has taken it up."""
    return f"waiting for KubeRay to take up RayJob {name}"


def first_obstacle(observed: Observed, workers_desired: int) -> Wait:
    """What the cluster waits for; of several things the gravest.

    `workers_desired` is the number of worker pods that there should be.
    """
    if observed.ray_job is None or not observed.ray_job.status.job_deployment_status:
        name = observed.ray_job.metadata.name if observed.ray_job else "of this attempt"
        return Wait(Obstacle.KUBERAY, waiting_for_kuberay(name))
    found = _gravest(observed, observed.pods_of_attempt) or lost_pod(observed.lost_pods_of_attempt)
    if found is not None:
        return found
    pods = _present(observed.pods_of_attempt)
    ready = sum(pod.is_worker and pod.is_ready for pod in pods)
    has_head = any(pod.is_head and pod.is_ready for pod in pods)
    if has_head and ready >= workers_desired:
        name = observed.ray_job.metadata.name
        return Wait(
            Obstacle.STARTING,
            f"all pods of the Ray cluster are ready; waiting for KubeRay to make Job {name}, which hands the"
            f" program to Ray (kubectl describe rayjob {name})",
        )
    head = "the head is ready" if has_head else "the head starts"
    return Wait(
        Obstacle.STARTING, f"waiting for the Ray cluster: {head}, worker pods {ready}/{workers_desired}"
    )


def submitter_obstacle(observed: Observed, now: datetime) -> Wait | None:
    """What keeps the submitter from handing the program to Ray, whose cluster is ready; None for nothing.

    A quota refuses the pod to the Job's controller, which says so in events alone: what can be seen is that
    there is no pod.
    """
    ray_job = observed.ray_job
    assert ray_job is not None, "its cluster is ready"
    pods = [pod for pod in observed.pods_of_attempt if pod.is_submitter]
    found = _gravest(observed, pods)
    if found is not None:
        return found
    cluster = observed.ray_cluster
    ready = (cluster.ready_since if cluster is not None else None) or ray_job.status.start_time
    return _of_a_job(ray_job.metadata.name, "hands the program to Ray", pods, since=ready, now=now)


def prepare_obstacle(observed: Observed, now: datetime) -> Wait | None:
    """What Prepare waits for before its program runs; None for nothing."""
    prepare_job = observed.prepare_job
    assert prepare_job is not None, "it has been asked for"
    name, begun = prepare_job.metadata.name, prepare_job.status.start_time
    if prepare_job.spec.suspend:
        return Wait(Obstacle.GATED, f"Job {name}, which prepares, is held back: its suspend is true")
    found = _gravest(observed, observed.pods_that_prepare) or lost_pod(observed.lost_pods_that_prepare)
    if found is not None:
        return found
    return _of_a_job(name, "prepares", observed.pods_that_prepare, since=begun, now=now)


def _of_a_job(name: str, does: str, pods: list[Pod], *, since: datetime | None, now: datetime) -> Wait | None:
    """What a Job of Kubernetes waits for until its pod runs; its pods were looked at for what is wrong.

    `does` is what it is for, and `since` when it may have had a pod for the first time, if that is known.
    """
    present = _present(pods)
    if not present:
        if since is None or now < since + SLOW_SUBMITTER:
            return Wait(Obstacle.STARTING, f"waiting for the pod of Job {name}, which {does}")
        return Wait(
            Obstacle.REFUSED,
            f"Job {name}, which {does}, has no pod: a quota, a LimitRange or an admission policy may refuse"
            f" it (kubectl events --for job/{name})",
        )
    waiting = next((pod for pod in present if pod.status.phase in ("", "Pending")), None)
    if waiting is not None:
        return Wait(Obstacle.STARTING, f"waiting for pod {waiting.name} to start, which {does}")
    return None


def _present(pods: Iterable[Pod]) -> list[Pod]:
    return [pod for pod in pods if pod.metadata.deletion_timestamp is None]


def _gravest(observed: Observed, pods: Sequence[Pod]) -> Wait | None:
    present = _present(pods)
    for found in (
        out_of_memory(present),
        _refused(observed),
        lost_pod(pods),
        _gated(present),
        _unschedulable(present),
        _image(present),
        _container(present),
    ):
        if found is not None:
            return found
    return None


def _refused(observed: Observed) -> Wait | None:
    """KubeRay was not allowed to make a pod: a quota, a policy, a missing service account."""
    for condition in observed.ray_cluster.status.conditions if observed.ray_cluster else ():
        if condition.type == "ReplicaFailure" and condition.status == "True":
            return Wait(
                Obstacle.REFUSED, in_a_line(f"a pod cannot be made ({condition.reason}): {condition.message}")
            )
    return None


def _gated(pods: Iterable[Pod]) -> Wait | None:
    for pod in pods:
        if any(
            condition.type == "PodScheduled" and condition.reason == "SchedulingGated"
            for condition in pod.status.conditions
        ):
            names = ", ".join(gate.name for gate in pod.spec.scheduling_gates)
            return Wait(
                Obstacle.GATED,
                in_a_line(
                    f"pod {pod.name} is held back by a scheduling gate ({names}), which whoever has set it"
                    " must take away"
                ),
            )
    return None


def _unschedulable(pods: Sequence[Pod]) -> Wait | None:
    stuck = [
        (pod, condition.message)
        for pod in pods
        for condition in pod.status.conditions
        if condition.type == "PodScheduled"
        and condition.status == "False"
        and condition.reason in ("Unschedulable", "SchedulerError")
    ]
    if not stuck:
        return None
    first, message = stuck[0]
    others = f" and {len(stuck) - 1} more" if len(stuck) > 1 else ""
    line = in_a_line(f"no node takes pod {first.name}{others}: {message}")
    if first.is_submitter or first.prepares:
        line += f"; what it asks for is spec.cluster.{first.role}.resources"
    return Wait(Obstacle.UNSCHEDULABLE, line)


def _image(pods: Iterable[Pod]) -> Wait | None:
    for pod, container, reason, message in _waiting_containers(pods):
        if reason in _IMAGE_REASONS:
            return Wait(
                Obstacle.IMAGE_PULL,
                in_a_line(f"pod {pod.name} cannot get the image {container.image} ({reason}): {message}"),
            )
    return None


def _container(pods: Iterable[Pod]) -> Wait | None:
    for pod, container, reason, message in _waiting_containers(pods):
        if reason in _CONTAINER_REASONS and was_killed(container):
            return Wait(Obstacle.CONTAINER, more_for(container, pod))
        if reason in _CONTAINER_REASONS:
            return Wait(
                Obstacle.CONTAINER,
                in_a_line(f"a container of pod {pod.name} does not start ({reason}): {message}"),
            )
    return None


def _waiting_containers(pods: Iterable[Pod]) -> Iterable[tuple[Pod, ContainerStatus, str, str]]:
    for pod in pods:
        for container in pod.containers:
            if container.state.waiting is not None:
                yield pod, container, container.state.waiting.reason, container.state.waiting.message
