"""The harness's faults are faults: each is felt while it lasts, and over afterwards."""

from __future__ import annotations

import pytest
from pydantic import JsonValue
from tests.e2e.pod_names import names
from tests.e2e.ray_jobs import ray_job, workers_service

from devcluster.failure import ClusterError
from devcluster.faults import cut_off, fill, small_volume, stopped
from devcluster.images import Image
from devcluster.kubectl import Kubectl
from devcluster.objects import at
from devcluster.pods import pod_spec
from devcluster.providers import NodeCluster
from devcluster.waiting import wait_for

pytestmark = pytest.mark.breaks_the_cluster

SERVE: list[JsonValue] = ["python3", "-m", "http.server", "8000", "--directory", "/tmp"]


def start_pod(kubectl: Kubectl, namespace: str, name: str, spec: dict[str, JsonValue]) -> str:
    """Starts a pod and returns its address once it runs."""
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec}
    )

    def address() -> str | None:
        status = at(kubectl.get("pod", name, namespace), "status")
        return (
            str(at(status, "podIP"))
            if isinstance(status, dict) and status.get("phase") == "Running"
            else None
        )

    return wait_for(f"pod {name} to run", address, seconds=90, seen=lambda: kubectl.story(namespace))


def reaches(kubectl: Kubectl, namespace: str, pod: str, address: str) -> bool:
    """Whether a pod gets an answer from another one's web server."""
    try:
        kubectl(
            "exec",
            "--namespace",
            namespace,
            pod,
            "--",
            "wget",
            "-q",
            "-O",
            "-",
            "-T",
            "2",
            "-t",
            "1",
            f"http://{address}:8000/",
        )
    except ClusterError:
        return False
    return True


@pytest.mark.parametrize("program", ["kube-apiserver", "etcd"])
def test_a_cluster_without_api_keeps_its_pods(
    node_cluster: NodeCluster, namespace: str, trainer: Image, program: str
) -> None:
    kubectl = node_cluster.kubectl
    start_pod(kubectl, namespace, "server", pod_spec(trainer.name, command=SERVE))
    before = at(kubectl.get("pod", "server", namespace), "status", "containerStatuses")

    with stopped(node_cluster, program), pytest.raises(ClusterError):
        kubectl("get", "pods", "--namespace", namespace, "--request-timeout=5s")

    def answered() -> bool:
        try:
            return at(kubectl.get("pod", "server", namespace), "status", "phase") == "Running"
        except ClusterError:
            return False

    wait_for("the API to answer", answered, seconds=60)
    assert at(kubectl.get("pod", "server", namespace), "status", "containerStatuses") == before


def test_without_kuberay_a_ray_job_waits_for_it(
    node_cluster: NodeCluster, namespace: str, trainer: Image
) -> None:
    kubectl = node_cluster.kubectl
    with stopped(node_cluster, "ray-operator"):
        kubectl.apply(workers_service(namespace))
        kubectl.apply(ray_job("job", namespace, trainer.name, seconds=600))
        with pytest.raises(ClusterError, match="waited 5 s for a pod"):
            wait_for("a pod", lambda: kubectl.all("pods", namespace), seconds=5)

    wait_for(
        "its head",
        lambda: names(kubectl, namespace, "ray.io/node-type=head"),
        seconds=120,
        seen=lambda: kubectl.story(namespace),
    )


def test_a_pod_that_is_cut_off_is_not_reached(
    node_cluster: NodeCluster, namespace: str, trainer: Image
) -> None:
    kubectl = node_cluster.kubectl
    server = start_pod(kubectl, namespace, "server", pod_spec(trainer.name, command=SERVE))
    start_pod(kubectl, namespace, "client", pod_spec(trainer.name, command=SERVE))
    wait_for("the server to answer", lambda: reaches(kubectl, namespace, "client", server), seconds=30)

    with cut_off(node_cluster, namespace, "server"):
        assert not reaches(kubectl, namespace, "client", server)

    wait_for("the server to answer again", lambda: reaches(kubectl, namespace, "client", server), seconds=30)


def test_a_volume_that_is_full_takes_nothing_more(
    node_cluster: NodeCluster, namespace: str, trainer: Image
) -> None:
    kubectl = node_cluster.kubectl
    write = (
        "exec",
        "--namespace",
        namespace,
        "writer",
        "--",
        "dd",
        "if=/dev/zero",
        "of=/data/file",
        "bs=64k",
        "count=4",
    )
    with small_volume(node_cluster, namespace, 2**20) as path:
        kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": namespace},
                "spec": {
                    "capacity": {"storage": "1Mi"},
                    "accessModes": ["ReadWriteMany"],
                    "storageClassName": namespace,
                    "hostPath": {"path": str(path)},
                },
            }
        )
        claim: dict[str, JsonValue] = {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": namespace,
            "resources": {"requests": {"storage": "1Mi"}},
        }
        metadata: dict[str, JsonValue] = {"name": "data", "namespace": namespace}
        kubectl.apply(
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim}
        )
        spec = pod_spec(trainer.name, command=SERVE)
        volumes, containers = spec["volumes"], spec["containers"]
        assert isinstance(volumes, list)
        assert isinstance(containers, list)
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": "data"}})
        mounts = at(dict(container) if isinstance(container := containers[0], dict) else None, "volumeMounts")
        assert isinstance(mounts, list)
        mounts.append({"name": "data", "mountPath": "/data"})
        start_pod(kubectl, namespace, "writer", spec)

        kubectl(*write)
        fill(node_cluster, path)
        with pytest.raises(ClusterError, match="No space left on device"):
            kubectl(*write[:-1], "count=64")
        kubectl("delete", "pod", "writer", "--namespace", namespace, "--grace-period=0", "--force")
    kubectl("delete", "pv", namespace, "--wait=false")
