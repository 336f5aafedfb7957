"""FineTuneJobs on the cluster, as kubectl shows them."""

from __future__ import annotations

from pydantic import JsonValue

from devcluster.kubectl import Kubectl
from devcluster.objects import at

CLAIM = "finetune"
"""The claim of the volume that holds models, data and runs."""


def get(kubectl: Kubectl, namespace: str, name: str) -> dict[str, JsonValue] | None:
    """A FineTuneJob as it is."""
    return kubectl.get("finetunejob", name, namespace)


def phase(kubectl: Kubectl, namespace: str, name: str) -> str | None:
    """Its phase."""
    found = at(get(kubectl, namespace, name), "status", "phase")
    return str(found) if found else None
