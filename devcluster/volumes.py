"""A volume that all pods of a namespace can have, filled and read through a pod that keeps it mounted."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

from pydantic import JsonValue

from devcluster.failure import ClusterError
from devcluster.kubectl import Kubectl
from devcluster.objects import at
from devcluster.pods import pod_spec
from devcluster.providers import Cluster, NodeCluster
from devcluster.waiting import wait_for

KEEPER = "files"
"""The pod."""
MOUNT = "/volume"
SIZE = "4Gi"


class Volume:
    """A claim called `name`, in a namespace."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, image: str) -> None:
        self.kubectl: Kubectl = cluster.kubectl
        self.namespace = namespace
        if isinstance(cluster, NodeCluster):
            self.kubectl.apply(_host_volume(cluster, f"{namespace}-{name}"))
        self.kubectl.apply(_claim(cluster, namespace, name))
        self.kubectl.apply(_keeper(namespace, name, image))

        def mounted() -> bool:
            return at(self.kubectl.get("pod", KEEPER, namespace), "status", "phase") == "Running"

        wait_for("the volume", mounted, seconds=120, seen=lambda: self.kubectl.story(namespace))

    def put(self, source: Path, target: str) -> None:
        """Copies a file or a directory to a path in the volume."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w", dereference=True) as tar:
            tar.add(source, arcname=target)
        self._exec(["tar", "--extract", "--no-same-owner", "--directory", MOUNT], stdin=archive.getvalue())

    def get(self, source: str, target: Path) -> Path:
        """Copies a directory of the volume to a new directory here."""
        packed = self._exec(["tar", "--create", "--directory", f"{MOUNT}/{source}", "."])
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            tar.extractall(target, filter="data")
        return target

    def text(self, path: str) -> str:
        """What is in a file."""
        return self._exec(["cat", f"{MOUNT}/{path}"]).decode()

    def complete_checkpoints(self, run: str) -> set[str]:
        """The names of the complete checkpoints below a run directory."""
        # Not ls or find: they fail when a directory goes while they look.
        look = "import glob, sys; print(*glob.glob('epoch-*/complete.json', root_dir=sys.argv[1]), sep='\\n')"
        found = self._exec(["python3", "-c", look, f"{MOUNT}/{run}"]).decode()
        return {line.partition("/")[0] for line in found.split()}

    def _exec(self, command: list[str], *, stdin: bytes | None = None) -> bytes:
        arguments = self.kubectl.command(
            "exec", "--stdin", "--namespace", self.namespace, KEEPER, "--", *command
        )
        ended = subprocess.run(arguments, input=stdin or b"", capture_output=True, timeout=300, check=False)
        if ended.returncode:
            raise ClusterError(f"{' '.join(command)}: {ended.stderr.decode(errors='replace')[-1000:]}")
        return ended.stdout


def _host_volume(cluster: NodeCluster, name: str) -> dict[str, JsonValue]:
    """The node has no provisioner; a directory of the cluster, which goes with it."""
    directory = cluster.directory / "volumes" / name
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o1777)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": SIZE},
            "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "storageClassName": name,
            "hostPath": {"path": str(directory)},
        },
    }


def _claim(cluster: Cluster, namespace: str, name: str) -> dict[str, JsonValue]:
    chosen: dict[str, JsonValue] = (
        {"storageClassName": f"{namespace}-{name}"} if isinstance(cluster, NodeCluster) else {}
    )
    spec: dict[str, JsonValue] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": SIZE}},
        **chosen,
    }
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def _keeper(namespace: str, claim: str, image: str) -> dict[str, JsonValue]:
    spec = pod_spec(image, name=KEEPER, command=["sleep", "infinity"])
    volumes, containers = spec["volumes"], spec["containers"]
    assert isinstance(volumes, list)
    assert isinstance(containers, list)
    volumes.append({"name": "volume", "persistentVolumeClaim": {"claimName": claim}})
    mounts = at(dict(first) if isinstance(first := containers[0], dict) else None, "volumeMounts")
    assert isinstance(mounts, list)
    mounts.append({"name": "volume", "mountPath": MOUNT})
    spec["terminationGracePeriodSeconds"] = 0
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": KEEPER, "namespace": namespace},
        "spec": spec,
    }
