"""A pytest plugin: a real Kubernetes API for tests, without nodes, and the programs that tests run.

Programs that are not on this machine are built from Go modules, which takes minutes. That happens once the
tests are collected, before the first one starts, so that no test's timeout counts it; and only for the tests
that were chosen.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from devcluster.control_plane import PROGRAMS, ControlPlane, free_address
from devcluster.failure import ClusterError
from devcluster.processes import Processes
from devcluster.programs import Say, find, kserve_definitions, kuberay_manifests

SERVERS = ("api_server", "without_kuberay")
"""The fixtures that start a Kubernetes API."""
NEEDED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(SERVERS, PROGRAMS),
    "kubectl_program": ("kubectl",),
    "helm_program": ("helm",),
    "gitops_health_program": ("gitops-health",),
}
"""The programs behind a fixture."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-server", action="store_true", help="leave out tests that need a Kubernetes API")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--no-server"):
        left_out = [item for item in items if fixtures_of([item]) & set(SERVERS)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly:
        return
    asked = fixtures_of(session.items)
    say = past_capturing(session.config)
    # What cannot be built is an error of the tests that need it, and said there.
    with suppress(ClusterError):
        for program in sorted({program for fixture in asked for program in NEEDED.get(fixture, ())}):
            find(program, say)
        if "kuberay_definitions" in asked:
            kuberay_manifests(say)
        if "kserve_inference_service" in asked:
            kserve_definitions(say)


def fixtures_of(items: list[pytest.Item]) -> set[str]:
    """The names of all fixtures that tests ask for, also through other fixtures."""
    return {name for item in items if isinstance(item, pytest.Function) for name in item.fixturenames}


def past_capturing(config: pytest.Config) -> Say:
    """Writes lines to standard error, each with the seconds since this call, although pytest captures it."""
    started = time.monotonic()
    capturing = config.pluginmanager.getplugin("capturemanager")

    def line(text: str) -> None:
        with capturing.global_and_fixture_disabled():
            print(f"[{time.monotonic() - started:5.1f} s] {text}", file=sys.stderr, flush=True)

    return line


@pytest.fixture(scope="session")
def kubectl_program() -> Path:
    return find("kubectl", print)


@pytest.fixture(scope="session")
def helm_program() -> Path:
    return find("helm", print)


@pytest.fixture(scope="session")
def gitops_health_program() -> Path:
    """What GitOps tools make of objects; `devcluster/go/gitops-health` says how it is called."""
    return find("gitops-health", print)


@pytest.fixture(scope="session")
def kuberay_definitions() -> Path:
    """The directory of KubeRay's CustomResourceDefinitions, a file for each."""
    return kuberay_manifests(print) / "crd/bases"


@pytest.fixture(scope="session")
def kserve_inference_service() -> Path:
    """The file of the CustomResourceDefinition of KServe's InferenceService."""
    return kserve_definitions(print) / "serving.kserve.io_inferenceservices.yaml"


@contextmanager
def _control_plane(directory: Path) -> Iterator[ControlPlane]:
    control_plane = ControlPlane(
        directory, partial(find, say=print), Processes(directory / "processes"), free_address()
    )
    control_plane.start()
    yield control_plane
    control_plane.remove()


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A real Kubernetes API for all tests of this process."""
    with _control_plane(tmp_path_factory.mktemp("control-plane")) as control_plane:
        yield control_plane


@pytest.fixture(scope="session")
def without_kuberay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One that knows nothing but Kubernetes."""
    with _control_plane(tmp_path_factory.mktemp("without-kuberay")) as control_plane:
        yield control_plane


@pytest.fixture
def namespace(api_server: ControlPlane) -> Iterator[str]:
    """A namespace of the test's own; it goes, with all that is in it, when the test is over."""
    from kubernetes.client import CoreV1Api, V1Namespace, V1ObjectMeta
    from kubernetes.config import new_client_from_config

    name = f"test-{uuid4().hex[:8]}"
    with new_client_from_config(str(api_server.kubeconfig)) as client:
        core = CoreV1Api(client)
        core.create_namespace(V1Namespace(metadata=V1ObjectMeta(name=name)))
        yield name
        core.delete_namespace(name)
