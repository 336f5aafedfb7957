"""Why a pod is not there that should be: its node has refused or evicted it, or somebody takes it away."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime

from finetune_operator.decide.killed_containers import SHORTLY_BEFORE
from finetune_operator.decide.wait import Obstacle, Wait, in_a_line
from finetune_operator.observed import Pod

# The kubelet's words when a pod has used more than it may itself: pkg/kubelet/eviction/eviction_manager.go.
_OWN_VOLUME = re.compile(r'Usage of EmptyDir volume "(?P<name>[^"]*)" exceeds the limit')
_OWN_CONTAINER = re.compile(r"Container (?P<name>\S+) exceeded its local ephemeral storage limit")
_OWN_TOTAL = "ephemeral local storage usage exceeds the total limit of containers"

_SHARED_MEMORY = "shared-mem"
"""KubeRay's volume for /dev/shm, as large as the limit of memory."""


def lost_pod(pods: Iterable[Pod], ended: datetime | None = None) -> Wait | None:
    """The first pod that the kubelet has ended or not taken, or that is being taken away, and why.

    A lack that another node may not have is Obstacle.LOST; a limit of the pod's own is OUT_OF_STORAGE. With
    `ended`, when an attempt was over, only what happened shortly before.
    """
    for pod in pods:
        if pod.has_failed:
            return _failed(pod)
        why = pod.disruption
        since = why.last_transition_time if why is not None else None
        old = ended is not None and since is not None and since < ended - SHORTLY_BEFORE
        if why is not None and not old:
            line = f"pod {pod.name} is being taken away ({why.reason}): {why.message}"
            return Wait(Obstacle.LOST, in_a_line(line))
    return None


def _failed(pod: Pod) -> Wait:
    reason, message = pod.status.reason, pod.status.message.strip().removesuffix(".")
    if reason != "Evicted":
        return Wait(Obstacle.LOST, in_a_line(f"pod {pod.name} has failed ({reason}): {message}"))
    evicted = in_a_line(f"pod {pod.name} was evicted: {message}")
    limits = f"spec.cluster.{pod.role}.resources.limits"
    volume, container = _OWN_VOLUME.search(message), _OWN_CONTAINER.search(message)
    if volume is not None and volume["name"] == _SHARED_MEMORY:
        return Wait(Obstacle.OUT_OF_STORAGE, f"{evicted}; raise {limits}.memory")
    if volume is not None:
        return Wait(Obstacle.OUT_OF_STORAGE, f"{evicted}; raise its sizeLimit in spec.cluster.volumes")
    if container is not None and container["name"] != pod.role:
        return Wait(Obstacle.OUT_OF_STORAGE, f"{evicted}; whoever adds this container to pods sets its limit")
    if container is not None or _OWN_TOTAL in message:
        return Wait(Obstacle.OUT_OF_STORAGE, f"{evicted}; raise {limits}.ephemeral-storage")
    if "low on resource: ephemeral-storage" in message:
        room = f"spec.cluster.{pod.role}.resources.requests.ephemeral-storage"
        return Wait(Obstacle.LOST, f"{evicted}; {room} asks for a node with room")
    return Wait(Obstacle.LOST, evicted)
