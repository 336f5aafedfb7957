"""Inputs that many tests share: small ones made in seconds, and the real model, made once for each machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from kubernetes.client import CoreV1Api, V1Namespace, V1ObjectMeta
from kubernetes.config import new_client_from_config

from devcluster.control_plane import ControlPlane, free_address
from devcluster.processes import Processes
from devcluster.programs import find
from make_inputs import TRAIN, VALIDATION, make_data, make_model
from make_tiny_model import make_tiny_model
from make_tiny_rows import make_tiny_rows


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with its own tokenizer and chat template."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tied_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one matrix for embedding and output."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-tied", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 chat rows of 30 to 500 tokens of the tiny model, some with several turns, some with a system message."""
    return make_tiny_rows(tmp_path_factory.mktemp("rows") / "tiny.jsonl", 24)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in fp32; made in the user's cache, with a download, when it is not there yet."""
    return make_model()


@pytest.fixture(scope="session")
def stdlib_train() -> Path:
    """80 chat rows about the standard library, 40 to 80 tokens of SmolLM2 each."""
    return make_data() / TRAIN


@pytest.fixture(scope="session")
def stdlib_validation() -> Path:
    """32 of the same kind, with no answer that is in `stdlib_train`."""
    return make_data() / VALIDATION


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
    """A real Kubernetes API, without nodes, for all tests of this run."""
    with _control_plane(tmp_path_factory.mktemp("control-plane")) as control_plane:
        yield control_plane


@pytest.fixture(scope="session")
def without_kuberay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A real API server that knows nothing but Kubernetes."""
    with _control_plane(tmp_path_factory.mktemp("without-kuberay")) as control_plane:
        yield control_plane


@pytest.fixture
def namespace(api_server: ControlPlane) -> Iterator[str]:
    """A namespace of the test's own; it goes, with all that is in it, when the test is over."""
    name = f"test-{uuid4().hex[:8]}"
    with new_client_from_config(str(api_server.kubeconfig)) as client:
        core = CoreV1Api(client)
        core.create_namespace(V1Namespace(metadata=V1ObjectMeta(name=name)))
        yield name
        core.delete_namespace(name)
