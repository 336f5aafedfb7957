"""A finished run, and a hub that takes what is pushed of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.trainer.training_jobs import LORA, job_of, train_here
from tests.trainer.writable_hub import Hub, hub_of_this_process, writable_hub


@pytest.fixture(scope="session")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs whose learning rate makes the second one worse; tests change a copy of it."""
    directory = tmp_path_factory.mktemp("finished") / "run"
    train_here(job_of(tiny_model, directory, LORA, num_epochs=2))
    return directory


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The hub of this process, and of those that it starts."""
    with writable_hub() as hub:
        hub_of_this_process(hub.address, monkeypatch, tmp_path)
        yield hub
