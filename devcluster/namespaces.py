"""Namespaces in which only pods that fit `restricted` start."""

from __future__ import annotations

from devcluster.kubectl import Kubectl
from devcluster.waiting import wait_for


def ensure_restricted(kubectl: Kubectl, name: str) -> None:
    """Makes the namespace if it is not there; pods can be made in it when this returns."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels)}}
    )
    wait_for("its service account", lambda: kubectl.get("serviceaccount", "default", name), seconds=60)
