"""Which container was killed for want of memory, and what gives that container more."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from finetune_operator.decide.wait import Obstacle, Wait
from finetune_operator.observed import ContainerStatus, Pod

SHORTLY_BEFORE = timedelta(minutes=5)
"""How long after a container was killed its attempt may end for it: Ray misses the node, the trainer gives
up, the submitter ends, KubeRay sees it. What was killed earlier and runs again is not why."""

INIT_CONTAINER = "wait-gcs-ready"
"""KubeRay's own in each worker pod, with memory that KubeRay fixes."""

_MESHES = {
    "istio-proxy": "sidecar.istio.io/proxyMemoryLimit",
    "linkerd-proxy": "config.linkerd.io/proxy-memory-limit",
}
"""Containers of service meshes, and the annotation of a pod that gives them more memory."""


def out_of_memory(pods: Iterable[Pod], ended: datetime | None = None) -> Wait | None:
    """The first pod that does not run since it took more memory than its limit, and what to raise.

    With `ended`, when an attempt was over: also one that was killed shortly before and runs again.
    """
    for pod in pods:
        own = pod.own_container
        if own is not None and was_killed(own, ended):
            return Wait(
                Obstacle.OUT_OF_MEMORY,
                f"pod {pod.name} took more memory than its limit; raise {_field(pod)}",
            )
        for container in pod.containers:
            if container.name == INIT_CONTAINER and was_killed(container, ended):
                return Wait(Obstacle.OUT_OF_MEMORY, more_for(container, pod))
    return None


def more_for(container: ContainerStatus, pod: Pod) -> str:
    """What was killed and what gives it more memory, for a container that the operator has not asked for."""
    what = f"container {container.name} of pod {pod.name} took more memory than its limit"
    if container.name == INIT_CONTAINER:
        return (
            f"{what}, which KubeRay fixes at 256Mi; start the KubeRay operator with"
            " ENABLE_INIT_CONTAINER_INJECTION=false in its environment"
        )
    if container.name in _MESHES:
        return f"{what}; raise it by the annotation {_MESHES[container.name]} in spec.cluster.annotations"
    return f"{what}, which is set by whoever adds this container to pods; it is not the job's"


def was_killed(container: ContainerStatus, ended: datetime | None = None) -> bool:
    """Whether want of memory is why a container does not run; with `ended`, or why it did not before."""
    state, before = container.state, container.last_state.terminated
    if state.terminated is not None:
        return state.terminated.reason == "OOMKilled"
    if state.running is not None:
        again = state.running.started_at
        if ended is None or (again is not None and again < ended - SHORTLY_BEFORE):
            return False
    return before is not None and before.reason == "OOMKilled"


def _field(pod: Pod) -> str:
    more = f"spec.cluster.{pod.role}.resources.limits.memory"
    if pod.is_worker:
        return f"{more}, or lower spec.train_batch_size_per_device or spec.context_length"
    return more
