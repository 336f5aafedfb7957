"""The cluster that these tests run on, and what they need there."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.jobs import put_tiny_inputs
from tests.e2e.namespaces import temporary_namespace
from tests.e2e.sightings import Sightings, watching

from devcluster.helm import Helm
from devcluster.images import OPERATOR, TRAINER, Image, Recipe, build_image
from devcluster.installation import Installation
from devcluster.jobs import CLAIM
from devcluster.kubectl import Kubectl
from devcluster.programs import Say, find
from devcluster.providers import Cluster, NodeCluster, choose
from devcluster.volumes import Volume


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What the operator did in all tests is looked at after them."""
    items.sort(key=lambda item: item.path.name == "test_least_privilege.py")


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Say:
    """Past pytest's capturing: building and loading images takes minutes."""
    started = time.monotonic()
    capturing = request.config.pluginmanager.getplugin("capturemanager")

    def line(text: str) -> None:
        with capturing.global_and_fixture_disabled():
            print(f"[{time.monotonic() - started:5.1f} s] {text}", file=sys.stderr, flush=True)

    return line


@pytest.fixture(scope="session")
def cluster(say: Say) -> Iterator[Cluster]:
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
    assert isinstance(cluster, NodeCluster), (
        "this test breaks parts of the cluster, which it can do to a node cluster only"
    )
    return cluster


@pytest.fixture(scope="session")
def kubectl(cluster: Cluster) -> Kubectl:
    return cluster.kubectl


@pytest.fixture(scope="session")
def kubeconfig(kubectl: Kubectl, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For clients other than kubectl: the chosen cluster and nothing else."""
    file = tmp_path_factory.mktemp("client") / "kubeconfig"
    file.touch(mode=0o600)
    file.write_text(kubectl("config", "view", "--minify", "--flatten", "--raw"))
    return file


def _provided(recipe: Recipe, cluster: Cluster, say: Say) -> Image:
    image = build_image(recipe, say)
    cluster.provide(image)
    say(f"{image.name} is where pods find it")
    return image


@pytest.fixture(scope="session")
def trainer(cluster: Cluster, say: Say) -> Image:
    """The trainer's image, built from its Dockerfile, where pods find it."""
    return _provided(TRAINER, cluster, say)


@pytest.fixture(scope="session")
def operator_image(cluster: Cluster, say: Say) -> Image:
    """The operator's image, in the same way."""
    return _provided(OPERATOR, cluster, say)


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace of the test's own, in which only pods that fit `restricted` start."""
    with temporary_namespace(kubectl) as name:
        yield name


@pytest.fixture(scope="session")
def helm(kubectl: Kubectl, say: Say) -> Helm:
    return Helm(find("helm", say), kubectl)


@pytest.fixture(scope="session")
def operator(helm: Helm, operator_image: Image, trainer: Image) -> Iterator[Installation]:
    """The operator, installed with its chart, watching all namespaces; its log must be free of errors when all tests are over."""
    installation = Installation(helm, operator_image, trainer)
    installation.install()
    yield installation
    assert installation.errors() == []
    installation.uninstall()


@pytest.fixture
def volume(cluster: Cluster, namespace: str, trainer: Image) -> Volume:
    """The claim `finetune` of the test's namespace, empty."""
    return Volume(cluster, namespace, CLAIM, trainer.name)


@pytest.fixture
def tiny_inputs(volume: Volume, tiny_model: Path, tiny_rows: Path) -> Volume:
    """The same, with what the small jobs of these tests train."""
    put_tiny_inputs(volume, tiny_model, tiny_rows)
    return volume


@pytest.fixture
def sightings(kubeconfig: Path, namespace: str) -> Iterator[Sightings]:
    """What happens in the test's namespace."""
    with watching(kubeconfig, namespace) as seen:
        yield seen
