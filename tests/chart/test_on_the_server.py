"""A real API server accepts what the chart makes, with no unknown field, whatever the values."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import yaml
from pydantic import JsonValue
from tests.admission import CHOSEN, NOBODY_CHOOSES
from tests.chart.rendering import Manifest, at, helm, is_hook, manifests, packaged
from tests.chart.test_names import VERSIONS

from devcluster.control_plane import ControlPlane
from devcluster.failure import ClusterError
from devcluster.installation import CHART, NAMESPACE
from devcluster.kubectl import Kubectl
from devcluster.waiting import wait_for

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
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}]
                }
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
        "gitops": {"healthChecks": True},
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
    "any user": {
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None},
        "config": {"pod_security_context": {}},
    },
    "the cluster's user": {
        "podSecurityContext": {"runAsUser": 1000650000, "runAsGroup": 0, "fsGroup": 1000650000}
    },
    "nothing but comments": dict.fromkeys(
        ("config", "crds", "metrics", "networkPolicy", "podSecurityContext", "rbac", "resources", "test")
    ),
    "a part of another chart": {"enabled": True, "global": {"imageRegistry": "registry.test"}},
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
    everything = "\n".join(map(json.dumps, ours))
    return kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=everything).splitlines()


@pytest.mark.parametrize("values", SWITCHES.values(), ids=SWITCHES)
def test_the_server_takes_what_is_made(kubectl: Kubectl, values: Manifest) -> None:
    rendered = manifests(values=values)
    monitored = [each for each in rendered if each["apiVersion"] == MONITORING]
    assert len(offered(kubectl, rendered)) == len(rendered) - len(monitored)


@pytest.mark.parametrize("release", ["my.release", "1password", "2024", "1e3", "null"])
def test_the_server_takes_it_whatever_the_release_is_called(kubectl: Kubectl, release: str) -> None:
    # Accounts are not there in a trial, and the pod of `helm test` is refused without its own.
    rendered = [each for each in manifests(release=release) if each["kind"] != "Pod"]
    assert len(offered(kubectl, rendered)) == len(rendered)


@pytest.mark.parametrize(("version", "app_version"), VERSIONS.values(), ids=VERSIONS)
def test_the_server_takes_it_whatever_the_version(
    kubectl: Kubectl, version: str, app_version: str, tmp_path: Path
) -> None:
    rendered = manifests(chart=packaged(tmp_path, version=version, app_version=app_version))
    assert len(offered(kubectl, rendered)) == len(rendered)


@pytest.fixture
def policed(kubectl: Kubectl) -> Iterator[Kubectl]:
    """The server, with a policy that refuses pods which choose their user."""
    policy = yaml.safe_dump_all(NOBODY_CHOOSES)
    kubectl("apply", "-f", "-", stdin=policy)

    def refuses() -> bool:
        try:
            offered(kubectl, operators_pods(manifests()))
        except ClusterError as error:
            return CHOSEN in str(error)
        return False

    wait_for("the policy to hold", refuses, seconds=60, every=0.1)
    yield kubectl
    kubectl("delete", "-f", "-", stdin=policy)


def operators_pods(rendered: list[Manifest]) -> list[Manifest]:
    """The pod of the Deployment, as its controller makes it, and that of `helm test`."""
    metadata: Manifest = {"name": "operator", "namespace": NAMESPACE}
    made: list[Manifest] = []
    for each in rendered:
        if each["kind"] == "Deployment":
            spec = dict(at(each, "spec.template.spec"))  # type: ignore[arg-type]
            spec["serviceAccountName"] = "finetune-operator-test"
            made.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        elif each["kind"] == "Pod":
            made.append(each)
    return made


def test_where_the_cluster_assigns_users_no_pod_of_the_chart_chooses_one(policed: Kubectl) -> None:
    for pod in operators_pods(manifests()):
        with pytest.raises(ClusterError, match=CHOSEN):
            offered(policed, [pod])
    left_to_the_cluster = operators_pods(manifests(values=SWITCHES["any user"]))
    assert len(offered(policed, left_to_the_cluster)) == 2


def test_an_unknown_field_would_be_noticed(kubectl: Kubectl) -> None:
    [deployment] = [each for each in manifests() if each["kind"] == "Deployment"]
    spec = dict(deployment["spec"]) if isinstance(deployment["spec"], dict) else {}
    unknown: JsonValue = {**spec, "replica": 1}
    with pytest.raises(ClusterError, match=r'unknown field "spec\.replica"'):
        offered(kubectl, [{**deployment, "spec": unknown}])


def difference(kubectl: Kubectl, applied: list[Manifest], *options: str) -> str:
    """What `kubectl diff` shows, which has the server run dry: what would change, were these applied."""
    ended = subprocess.run(
        kubectl.command("diff", *options, "-f", "-"),
        input=yaml.safe_dump_all(applied),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode in (0, 1), ended.stderr
    return ended.stdout


def drift(kubectl: Kubectl, applied: list[Manifest], *options: str) -> str:
    """The difference that stays: of what is new, controllers write the status while kubectl compares."""
    shown = ""
    for _ in range(5):
        shown = difference(kubectl, applied, *options)
        if not shown:
            break
    return shown


def lost(wanted: JsonValue, stored: JsonValue, path: str = "") -> Iterator[str]:
    """Where what was applied is not as it is stored; what the server has filled in besides is left out."""
    match wanted, stored:
        case dict(), dict():
            for key, value in wanted.items():
                yield from lost(value, stored.get(key), f"{path}.{key}")
        case list(), list() if len(wanted) == len(stored):
            for number, pair in enumerate(zip(wanted, stored, strict=True)):
                yield from lost(*pair, f"{path}[{number}]")
        case _ if wanted != stored and str(wanted) != stored:  # a quantity is stored as text
            yield f"{path}: {wanted!r} is stored as {stored!r}"


@pytest.mark.parametrize(
    ("values", "options"),
    [*((values, ("--server-side",)) for values in SWITCHES.values()), (SWITCHES["everything"], ())],
    ids=[*SWITCHES, "everything, merged by kubectl"],
)
def test_what_is_applied_again_changes_nothing(
    kubectl: Kubectl, values: Manifest, options: tuple[str, ...]
) -> None:
    """As Argo CD and Flux apply it, over and over: each difference would be drift for ever."""
    applied = [
        each for each in manifests(values=values) if each["apiVersion"] != MONITORING and not is_hook(each)
    ]
    text = yaml.safe_dump_all(applied)
    kubectl("apply", *options, "-f", "-", stdin=text)
    try:
        assert drift(kubectl, applied, *options) == ""

        stored = json.loads(kubectl("get", "-f", "-", "--output=json", stdin=text))["items"]
        assert [line for pair in zip(applied, stored, strict=True) for line in lost(*pair)] == []
    finally:
        # The definition stays: other tests of this server use it.
        others = [each for each in applied if each["kind"] != "CustomResourceDefinition"]
        kubectl("delete", "--wait=false", "-f", "-", stdin=yaml.safe_dump_all(others))


def test_drift_would_be_noticed(kubectl: Kubectl) -> None:
    [service] = [each for each in manifests() if each["kind"] == "Service"]
    kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump(service))
    try:
        changed: Manifest = {**service, "spec": {**cast("Manifest", service["spec"]), "clusterIP": "None"}}
        assert list(lost(changed, service)) == [".spec.clusterIP: 'None' is stored as None"]
        labelled: Manifest = {
            **service,
            "metadata": {**cast("Manifest", service["metadata"]), "labels": {"a": "b"}},
        }
        assert "+    a: b" in difference(kubectl, [labelled], "--server-side")
    finally:
        kubectl("delete", "-f", "-", stdin=yaml.safe_dump(service))


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
