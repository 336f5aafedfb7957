"""What a Ray cluster that is not ready waits for, as a reason for programs and a line for people."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

_LONGEST = 600


class Obstacle(StrEnum):
    """Why the cluster is not ready: a reason of the condition ClusterReady."""

    KUBERAY = "WaitingForKubeRay"
    REFUSED = "PodsRefused"
    GATED = "SchedulingGated"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL = "ImagePull"
    CONTAINER = "ContainerError"
    OUT_OF_MEMORY = "OutOfMemory"
    OUT_OF_STORAGE = "OutOfLocalStorage"
    LOST = "PodLost"
    STARTING = "PodsStarting"


@dataclass(frozen=True)
class Wait:
    """What a cluster waits for."""

    obstacle: Obstacle
    message: str
    """For people: what is waited for, with the names of pods and images."""


def in_a_line(text: str) -> str:
    """A text in one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
