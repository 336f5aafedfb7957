"""A real API server accepts what the chart makes, with no unknown field, whatever the values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import JsonValue
from tests.chart.rendering import Manifest, helm, manifests

from devcluster.control_plane import ControlPlane
from devcluster.failure import ClusterError
from devcluster.installation import CHART, NAMESPACE
from devcluster.kubectl import Kubectl

pytestmark = pytest.mark.usefixtures("helm_program")

MONITORING = "monitoring.coreos.com/v1"
"""The Prometheus operator's, whose definitions are not here."""

SWITCHES: dict[str, Manifest] = {
    "default": {},
    "everything": {
        "image": {"digest": f"sha256:{'0' * 64}", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "config": {
            "storage": "s3://runs",
            "accelerators": {"V100": None},
            "dashboard_clients": [{"namespaceSelector": {}}],
        },
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/finetune"}},
        "resources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"cpu": 2, "memory": "1Gi"}},
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": []}]}
            }
        },
        "priorityClassName": "system-cluster-critical",
        "podLabels": {"team": "ml"},
        "podAnnotations": {"example.com/owner": "ml"},
        "networkPolicy": {
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
            "apiServerPorts": [16443],
        },
        "metrics": {
            "serviceMonitor": {"enabled": True},
            "alerts": {"enabled": True},
            "dashboard": {"enabled": True},
        },
        "test": {"storageClassName": "fast", "spec": {"num_epochs": 1}},
    },
    "its own namespaces": {"watchNamespaces": ["default", "kube-public"], "crds": {"keep": False}},
    "what is there": {
        "crds": {"install": False},
        "rbac": {"create": False, "aggregate": False},
        "serviceAccount": {"create": False, "name": "mine"},
        "networkPolicy": {"enabled": False},
        "kuberay": {"check": False},
        "config": {"network_policies": False},
    },
}


@pytest.fixture(scope="module")
def kubectl(api_server: ControlPlane, kubectl_program: Path) -> Iterator[Kubectl]:
    """An administrator's, where the releases' namespace is, and the account of a pod that is only offered."""
    chosen = Kubectl(kubectl_program, api_server.kubeconfig)
    chosen("create", "namespace", NAMESPACE)
    for namespace in (NAMESPACE, "default"):
        chosen("create", "serviceaccount", "finetune-operator-test", "--namespace", namespace)
    yield chosen
    chosen("delete", "namespace", NAMESPACE, "--wait=false")


def offered(kubectl: Kubectl, rendered: list[Manifest]) -> list[str]:
    """What the server says to the manifests, were they applied: a line each.

    Raises ClusterError with every objection.
    """
    ours = [each for each in rendered if each["apiVersion"] != MONITORING]
    return kubectl(
        "apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=yaml.safe_dump_all(ours)
    ).splitlines()


@pytest.mark.parametrize("values", SWITCHES.values(), ids=SWITCHES)
def test_the_server_takes_what_is_made(kubectl: Kubectl, values: Manifest) -> None:
    rendered = manifests(values=values)
    monitored = [each for each in rendered if each["apiVersion"] == MONITORING]
    assert len(offered(kubectl, rendered)) == len(rendered) - len(monitored)


def test_an_unknown_field_would_be_noticed(kubectl: Kubectl) -> None:
    [deployment] = [each for each in manifests() if each["kind"] == "Deployment"]
    spec = dict(deployment["spec"]) if isinstance(deployment["spec"], dict) else {}
    unknown: JsonValue = {**spec, "replica": 1}
    with pytest.raises(ClusterError, match=r'unknown field "spec\.replica"'):
        offered(kubectl, [{**deployment, "spec": unknown}])


def test_a_cluster_without_kuberay_gets_no_release(without_kuberay: ControlPlane) -> None:
    with_namespace = (
        "--namespace",
        NAMESPACE,
        "--create-namespace",
        f"--kubeconfig={without_kuberay.kubeconfig}",
    )

    with pytest.raises(
        ClusterError,
        match=r"this cluster does not serve ray\.io/v1 RayJobs: install KubeRay 1\.6 or newer first",
    ):
        helm("install", "finetune-operator", CHART, *with_namespace)

    assert (
        json.loads(
            helm("list", "--all-namespaces", f"--kubeconfig={without_kuberay.kubeconfig}", "--output=json")
        )
        == []
    )
