"""What goes wrong in real clusters, done on purpose to a node cluster or to pods."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from devcluster.failure import ClusterError
from devcluster.kubectl import Kubectl
from devcluster.providers import NodeCluster

CNI_RESULTS = Path("/var/lib/cni/results")


def kill_pod(kubectl: Kubectl, namespace: str, name: str) -> None:
    """Ends a pod without grace, as a lost node does."""
    kubectl("delete", "pod", name, "--namespace", namespace, "--grace-period=0", "--force", "--wait=false")


@contextmanager
def stopped(cluster: NodeCluster, program: str) -> Iterator[None]:
    """A program of the cluster (`etcd`, `kube-apiserver`, `ray-operator`, ...) does not run meanwhile."""
    cluster.node.processes.kill(program)
    try:
        yield
    finally:
        cluster.start_program(program)
        if program in ("etcd", "kube-apiserver"):
            # They lose their leadership meanwhile, and begin anew; without that they would try again after up
            # to a minute.
            for follower in ("kube-controller-manager", "kube-scheduler"):
                cluster.node.processes.kill(follower)
                cluster.start_program(follower)


@contextmanager
def cut_off(cluster: NodeCluster, namespace: str, pod: str) -> Iterator[None]:
    """A pod's network cable is pulled meanwhile."""
    status = (cluster.kubectl.get("pod", pod, namespace) or {}).get("status")
    address = status.get("podIP") if isinstance(status, dict) else None
    results = cluster.node.sandbox.run("sh", "-c", f"cat {CNI_RESULTS}/*")
    interface = next(
        filter(None, (_machine_interface(result, str(address)) for result in _documents(results))), None
    )
    if interface is None:
        raise ClusterError(f"pod {namespace}/{pod} has no network interface with the address {address}")
    cluster.node.sandbox.run("ip", "link", "set", interface, "down")
    try:
        yield
    finally:
        cluster.node.sandbox.run("ip", "link", "set", interface, "up")


@contextmanager
def small_volume(cluster: NodeCluster, name: str, size: int) -> Iterator[Path]:
    """A directory for hostPath volumes with room for `size` bytes, writable by everybody."""
    path = cluster.directory / "volumes" / name
    path.mkdir(parents=True)
    cluster.node.sandbox.run("mount", "-t", "tmpfs", "-o", f"size={size},mode=1777", "tmpfs", path)
    try:
        yield path
    finally:
        cluster.node.sandbox.run("umount", "--lazy", path)


def fill(cluster: NodeCluster, volume: Path) -> None:
    """Leaves no room in a `small_volume`."""
    try:
        cluster.node.sandbox.run("sh", "-c", f"cat /dev/zero >{volume}/filling")
    except ClusterError as error:
        if "No space left on device" not in str(error):
            raise


def _documents(text: str) -> Iterator[dict[str, object]]:
    decoder, position = json.JSONDecoder(), 0
    while position < len(text):
        document, position = decoder.raw_decode(text, position)
        yield document
        position += len(text[position:]) - len(text[position:].lstrip())


def _machine_interface(cached: dict[str, object], address: str) -> str | None:
    """The node's end of the network interface with this address, in a result that a CNI plugin cached."""
    result = cached.get("result")
    if not isinstance(result, dict) or not any(
        each["address"].partition("/")[0] == address for each in result.get("ips", ())
    ):
        return None
    return next((str(each["name"]) for each in result["interfaces"] if each["name"].startswith("veth")), None)
