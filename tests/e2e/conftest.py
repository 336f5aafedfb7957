"""The cluster that these tests run on, and what they need there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.api_server import fixtures_of, past_capturing
from tests.e2e.jobs import put_tiny_inputs
from tests.e2e.namespaces import temporary_namespace
from tests.e2e.sightings import Sightings, watching

from devcluster.failure import ClusterError
from devcluster.helm import Helm
from devcluster.images import OPERATOR, TRAINER, Image, Recipe, build_image
from devcluster.installation import Installation
from devcluster.jobs import CLAIM
from devcluster.kubectl import Kubectl
from devcluster.programs import HELM, NODE, OF_A_NODE, Say, find
from devcluster.providers import Cluster, NodeCluster, choose
from devcluster.volumes import Volume

RECIPES_BEHIND = {"trainer": TRAINER, "operator_image": OPERATOR}
"""The images behind fixtures."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What the operator did in all tests is looked at after them."""
    items.sort(key=lambda item: item.path.name == "test_least_privilege.py")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds what takes minutes before the first test starts, whose timeout would count it."""
    asked = set() if session.config.option.collectonly else fixtures_of(session.items)
    if not asked & {"cluster", "programs"}:
        return
    say = past_capturing(session.config)
    # What cannot be built is an error of the tests that need it, and said there.
    with suppress(ClusterError):
        _build_programs(say)
        for recipe in (RECIPES_BEHIND[fixture] for fixture in sorted(asked & RECIPES_BEHIND.keys())):
            build_image(recipe, say)


def _build_programs(say: Say) -> None:
    on_a_node = isinstance(choose(os.environ, say), NodeCluster)
    for build in OF_A_NODE if on_a_node else (NODE, HELM):
        find(build.programs[0], say)


@pytest.fixture(scope="session")
def programs(say: Say) -> None:
    """All programs that a cluster is made of are there."""
    _build_programs(say)


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Say:
    return past_capturing(request.config)


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
    """The same, for tests marked `breaks_the_cluster`."""
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
    """The operator, installed by its chart, watching all namespaces; its log must end without an error."""
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
