"""Clusters for the end-to-end tests: one that exists, one in Docker, or a node on this very machine.

Tests see a kubeconfig.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import yaml

from devcluster import kuberay
from devcluster.cache import alone_in
from devcluster.commands import run
from devcluster.failure import ClusterError
from devcluster.images import Image, export, images_directory
from devcluster.kubectl import Kubectl
from devcluster.node import Node
from devcluster.programs import Say, find

CHOICE = "FINETUNE_TEST_CLUSTER"
"""The environment variable that chooses: `node`, `kind`, or `context:NAME` for a cluster of the kubeconfig in
use."""
KIND_NAME = "finetune-test"
KIND_NODE_IMAGE = "FINETUNE_TEST_KIND_IMAGE"
"""The environment variable for kind's `--image`, which is the Kubernetes version."""


def state_directory() -> Path:
    """Where a running cluster's files are: `finetune-operator/cluster` in the user's state directory."""
    return (
        Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        / "finetune-operator"
        / "cluster"
    )


class Cluster(ABC):
    """A Kubernetes with KubeRay that runs pods."""

    def __init__(self, say: Say) -> None:
        self.say = say

    @property
    @abstractmethod
    def kubectl(self) -> Kubectl:
        """An administrator's."""

    @abstractmethod
    def up(self) -> bool:
        """Makes the cluster if it is not there; says whether it did. Raises ClusterError."""

    @abstractmethod
    def down(self) -> None:
        """Removes what `up` made, also when `up` was killed; nothing when there is nothing."""

    @abstractmethod
    def provide(self, image: Image) -> None:
        """Makes an image that was built here available to pods."""

    @property
    def kubeconfig(self) -> Path:
        """For clients."""
        return self.kubectl.kubeconfig


class NodeCluster(Cluster):
    """A node on this machine, and KubeRay as a process beside it."""

    def __init__(self, say: Say, directory: Path | None = None) -> None:
        super().__init__(say)
        self.directory = directory or state_directory() / "node"
        self.node = Node(self.directory, lambda program: find(program, say))

    @property
    def kubectl(self) -> Kubectl:
        return Kubectl(find("kubectl", self.say), self.node.kubeconfig)

    def up(self) -> bool:
        with alone_in(self.directory.with_name(f"{self.directory.name}-lock")):
            if self.node.running() and self.node.processes.process(kuberay.OPERATOR):
                return False
            self.node.start()
            try:
                kuberay.apply_crds(self.kubectl, self.say)
                self.start_program(kuberay.OPERATOR)
            except BaseException:
                self.node.stop(keep_logs=True)
                raise
            return True

    def down(self) -> None:
        with alone_in(self.directory.with_name(f"{self.directory.name}-lock")):
            self.node.stop()

    def provide(self, image: Image) -> None:
        if image.name not in self.node.images():
            archive = images_directory() / "to-import.tar"
            export(image, archive, self.say, known=self.node.layers())
            self.node.import_images(archive)
            archive.unlink()
        for name in superseded(self.node.images(), image):
            self.node.ctr("images", "remove", name)

    def start_program(self, name: str) -> None:
        """Starts a program of the cluster that has been stopped."""
        if name == kuberay.OPERATOR:
            self.node.processes.start(
                kuberay.operator_beside(find("ray-operator", self.say), self.node.kubeconfig)
            )
        else:
            self.node.start_program(name)


class KindCluster(Cluster):
    """A cluster of kind's, in Docker."""

    @property
    def kubectl(self) -> Kubectl:
        return Kubectl(find("kubectl", self.say), state_directory() / "kind.kubeconfig")

    def up(self) -> bool:
        if KIND_NAME in run(["kind", "get", "clusters"]).split():
            return False
        self.kubeconfig.parent.mkdir(parents=True, exist_ok=True)
        image = os.environ.get(KIND_NODE_IMAGE)
        chosen = [f"--image={image}"] if image else []
        try:
            run(
                [
                    "kind",
                    "create",
                    "cluster",
                    f"--name={KIND_NAME}",
                    f"--kubeconfig={self.kubeconfig}",
                    "--wait=180s",
                    *chosen,
                ],
                seconds=900,
            )
            kuberay.apply_operator(self.kubectl, self.say)
        except BaseException:
            self.down()
            raise
        return True

    def down(self) -> None:
        run(
            ["kind", "delete", "cluster", f"--name={KIND_NAME}", f"--kubeconfig={self.kubeconfig}"],
            seconds=180,
        )
        self.kubeconfig.unlink(missing_ok=True)

    def provide(self, image: Image) -> None:
        archive = images_directory() / "to-load.tar"
        export(image, archive, self.say)
        run(["kind", "load", "image-archive", str(archive), f"--name={KIND_NAME}"], seconds=900)
        archive.unlink()


class ExistingCluster(Cluster):
    """A cluster of somebody's, which is named, and neither made nor removed here."""

    def __init__(self, say: Say, context: str) -> None:
        super().__init__(say)
        self.context = context

    @property
    def kubectl(self) -> Kubectl:
        file = Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
        return Kubectl(find("kubectl", self.say), file, self.context)

    def up(self) -> bool:
        file = self.kubectl.kubeconfig
        try:
            names = [each["name"] for each in (yaml.safe_load(file.read_text()) or {}).get("contexts") or ()]
        except (OSError, yaml.YAMLError, AttributeError, TypeError, KeyError) as error:
            raise ClusterError(
                f"{file}: not a kubeconfig that can be read ({error}); set KUBECONFIG"
            ) from error
        if self.context not in names:
            raise ClusterError(
                f"{file}: there is no context {self.context}; there are {', '.join(names) or 'none'}"
            )
        if not kuberay.installed(self.kubectl):
            raise ClusterError(
                f"the cluster of context {self.context} has no KubeRay: install it there first"
            )
        return False

    def down(self) -> None:
        return

    def provide(self, image: Image) -> None:
        raise ClusterError(
            f"{image.name}: push it to a registry that the cluster of {self.context} can pull from"
        )


def superseded(images: Mapping[str, str], image: Image) -> list[str]:
    """The names of images that are of no use beside `image`: other versions of it, and names of those alone.

    `images` are all names with their digests.
    """
    repository = image.name.rpartition(":")[0]
    old = [name for name in images if name.startswith(f"{repository}:") and name != image.name]
    used = {digest for name, digest in images.items() if not name.startswith("sha256:") and name not in old}
    return old + [
        name for name, digest in images.items() if name.startswith("sha256:") and digest not in used
    ]


def choose(environment: Mapping[str, str], say: Say) -> Cluster:
    """The cluster that the environment names; else kind, where that can work, else a node on this machine.

    A kubeconfig alone is never taken for permission to use its cluster. Raises ClusterError for a choice that
    is none.
    """
    choice = environment.get(CHOICE) or ("kind" if _docker_works() and shutil.which("kind") else "node")
    kind, _, name = choice.partition(":")
    if kind == "context" and name:
        return ExistingCluster(say, name)
    if choice == "kind":
        return KindCluster(say)
    if choice == "node":
        return NodeCluster(say)
    raise ClusterError(f"{CHOICE} is {choice!r}; it must be node, kind or context:NAME")


def _docker_works() -> bool:
    if shutil.which("docker") is None:
        return False
    try:
        return (
            subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False).returncode == 0
        )
    except subprocess.TimeoutExpired:
        return False
