"""KubeRay, at the version of `go/go.mod`."""

from __future__ import annotations

import json
from pathlib import Path

from devcluster.kubectl import Kubectl
from devcluster.processes import Program
from devcluster.programs import Say, kuberay_manifests
from devcluster.waiting import wait_for

OPERATOR = "ray-operator"
CRDS = ("rayclusters.ray.io", "rayjobs.ray.io", "rayservices.ray.io")


def apply_crds(kubectl: Kubectl, say: Say) -> None:
    """Its resource definitions, and waits until they are served.

    They are too large for anything but server-side apply.
    """
    kubectl(
        "apply",
        "--server-side",
        "--force-conflicts",
        "--kustomize",
        kuberay_manifests(say) / "crd",
        seconds=120,
    )
    _wait_for_crds(kubectl)


def apply_operator(kubectl: Kubectl, say: Say) -> None:
    """KubeRay inside the cluster, with its image from its registry."""
    kubectl(
        "apply",
        "--server-side",
        "--force-conflicts",
        "--kustomize",
        kuberay_manifests(say) / "default",
        seconds=120,
    )
    _wait_for_crds(kubectl)
    kubectl("rollout", "status", "deployment/kuberay-operator", "--timeout=300s", seconds=310)


def operator_beside(program: Path, kubeconfig: Path) -> Program:
    """KubeRay as a process beside the cluster; Ray's dashboards are reached through the API server.

    Its CRDs must be there.
    """
    arguments = [f"--kubeconfig={kubeconfig}", "--enable-leader-election=false", "--use-kubernetes-proxy"]
    return Program(OPERATOR, [program, *arguments])


def installed(kubectl: Kubectl) -> bool:
    """Whether its resource definitions are there."""
    names = kubectl("get", "crd", "--output=name")
    return all(f"/{name}" in names for name in CRDS)


def _wait_for_crds(kubectl: Kubectl) -> None:
    wait_for(
        "KubeRay's resource definitions",
        lambda: all(_is_established(kubectl, name) for name in CRDS),
        seconds=60,
    )


def _is_established(kubectl: Kubectl, name: str) -> bool:
    """As `kubectl wait` would ask, which fails on a definition that is so new that it has no conditions."""
    found = json.loads(kubectl("get", "crd", name, "--output=json"))
    return any(
        each["type"] == "Established" and each["status"] == "True"
        for each in (found.get("status") or {}).get("conditions") or ()
    )
