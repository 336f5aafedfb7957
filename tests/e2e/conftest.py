"""The cluster that these tests run on, and what they need there."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
from tests.cluster.cache import cache_directory
from tests.cluster.images import Image, export, trainer_image
from tests.cluster.kubectl import Kubectl
from tests.cluster.providers import Cluster, NodeCluster, choose

STARTED = time.monotonic()


def say(line: str) -> None:
    """Past pytest's capturing: building and loading images takes minutes."""
    print(f"[{time.monotonic() - STARTED:5.1f} s] {line}", file=sys.__stderr__, flush=True)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster that the environment names, as it was found: what was not up goes down again."""
    chosen = choose(os.environ, say)
    made = chosen.up()
    say("the cluster is up" if made else "the cluster was up already")
    yield chosen
    if made:
        chosen.down()


@pytest.fixture(scope="session")
def node_cluster(cluster: Cluster) -> NodeCluster:
    """The same, for tests that break parts of it; elsewhere they are left out with `-m "not breaks_the_cluster"`."""
    assert isinstance(cluster, NodeCluster), "this test breaks parts of the cluster, which it can do to a node cluster only"
    return cluster


@pytest.fixture(scope="session")
def kubectl(cluster: Cluster) -> Kubectl:
    return cluster.kubectl


@pytest.fixture(scope="session")
def trainer(cluster: Cluster) -> Image:
    """The trainer's image, built from its Dockerfile, where pods find it."""
    image = trainer_image(cache_directory() / "images", say)
    archive = export(image, cache_directory() / "images" / f"{image.name.replace('/', '-').replace(':', '-')}.tar")
    say(f"{image.name} is built")
    cluster.provide(archive)
    say(f"{image.name} is where pods find it")
    return image


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace of the test's own, in which only pods that fit `restricted` start."""
    name = f"e2e-{uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict(labels)}})
    yield name
    # Without waiting: a RayJob whose operator is down would hold it for ever.
    kubectl("delete", "namespace", name, "--wait=false")
