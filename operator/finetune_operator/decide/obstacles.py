"""What a Ray cluster that is not ready waits for: KubeRay, a node with room, an image, a quota."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from finetune_operator.observed import Observed, Pod

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
_LONGEST = 600


class Obstacle(StrEnum):
    """Why the cluster is not ready: a reason of the condition ClusterReady."""

    KUBERAY = "WaitingForKubeRay"
    REFUSED = "PodsRefused"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL = "ImagePull"
    CONTAINER = "ContainerError"
    OUT_OF_MEMORY = "OutOfMemory"
    STARTING = "PodsStarting"


@dataclass(frozen=True)
class Wait:
    """What a cluster waits for."""

    obstacle: Obstacle
    message: str
    """For people: what is waited for, with the names of pods and images."""


def first_obstacle(observed: Observed, workers_desired: int) -> Wait:
    """What the cluster waits for; of several things the gravest.

    `workers_desired` is the number of worker pods that there should be.
    """
    if observed.ray_job is None or not observed.ray_job.status.job_deployment_status:
        name = observed.ray_job.metadata.name if observed.ray_job else "of this attempt"
        return Wait(Obstacle.KUBERAY, f"waiting for KubeRay to take up RayJob {name}")
    pods = [pod for pod in observed.pods if pod.metadata.deletion_timestamp is None]
    for found in (
        out_of_memory(pods),
        _refused(observed),
        _unschedulable(pods),
        _image(pods),
        _container(pods),
    ):
        if found is not None:
            return found
    ready = sum(pod.is_worker and pod.is_ready for pod in pods)
    head = "the head is ready" if any(pod.is_head and pod.is_ready for pod in pods) else "the head starts"
    return Wait(
        Obstacle.STARTING, f"waiting for the Ray cluster: {head}, worker pods {ready}/{workers_desired}"
    )


def out_of_memory(pods: Iterable[Pod]) -> Wait | None:
    """The first pod with a container that was killed for want of memory, and what to raise."""
    for pod in pods:
        for container in pod.containers:
            for state in (container.state, container.last_state):
                if state.terminated is not None and state.terminated.reason == "OOMKilled":
                    kind = "worker" if pod.is_worker else "head"
                    more = (
                        f"pod {pod.name} took more memory than its limit; raise"
                        f" spec.cluster.{kind}.resources.limits.memory"
                    )
                    less = (
                        ", or lower spec.train_batch_size_per_device or spec.context_length"
                        if pod.is_worker
                        else ""
                    )
                    return Wait(Obstacle.OUT_OF_MEMORY, more + less)
    return None


def _refused(observed: Observed) -> Wait | None:
    """KubeRay was not allowed to make a pod: a quota, a policy, a missing service account."""
    for condition in observed.ray_cluster.status.conditions if observed.ray_cluster else ():
        if condition.type == "ReplicaFailure" and condition.status == "True":
            return Wait(
                Obstacle.REFUSED, _short(f"a pod cannot be made ({condition.reason}): {condition.message}")
            )
    return None


def _unschedulable(pods: Sequence[Pod]) -> Wait | None:
    stuck = [
        (pod, condition.message)
        for pod in pods
        for condition in pod.status.conditions
        if condition.type == "PodScheduled"
        and condition.status == "False"
        and condition.reason == "Unschedulable"
    ]
    if not stuck:
        return None
    first, message = stuck[0]
    others = f" and {len(stuck) - 1} more" if len(stuck) > 1 else ""
    return Wait(Obstacle.UNSCHEDULABLE, _short(f"no node takes pod {first.name}{others}: {message}"))


def _image(pods: Iterable[Pod]) -> Wait | None:
    for pod, image, reason, message in _waiting_containers(pods):
        if reason in _IMAGE_REASONS:
            return Wait(
                Obstacle.IMAGE_PULL,
                _short(f"pod {pod.name} cannot get the image {image} ({reason}): {message}"),
            )
    return None


def _container(pods: Iterable[Pod]) -> Wait | None:
    for pod, _, reason, message in _waiting_containers(pods):
        if reason in _CONTAINER_REASONS:
            return Wait(
                Obstacle.CONTAINER,
                _short(f"a container of pod {pod.name} does not start ({reason}): {message}"),
            )
    return None


def _waiting_containers(pods: Iterable[Pod]) -> Iterable[tuple[Pod, str, str, str]]:
    for pod in pods:
        for container in pod.containers:
            if container.state.waiting is not None:
                yield pod, container.image, container.state.waiting.reason, container.state.waiting.message


def _short(text: str) -> str:
    """In one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
