"""Which pods of a namespace are in a phase."""

from __future__ import annotations

from devcluster.kubectl import Kubectl
from devcluster.objects import at


def names(kubectl: Kubectl, namespace: str, selector: str, phase: str = "Running") -> set[str]:
    """The names of the pods that a label selector finds in a phase."""
    return {
        str(at(pod, "metadata", "name"))
        for pod in kubectl.all("pods", namespace, selector)
        if at(pod, "status", "phase") == phase
    }
