"""Which checkpoint a path and a name mean."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.trainer.training_jobs import LORA, job_of, train_here

from finetune_trainer.chat.checkpoint import find_checkpoint
from finetune_trainer.storage.open import open_storage
from finetune_trainer.storage.run_directory import RunDirectory


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs, each with a checkpoint."""
    directory = tmp_path_factory.mktemp("find") / "run"
    train_here(job_of(tiny_model, directory, LORA))
    return directory


def test_of_a_run_it_is_the_best_one_or_the_one_that_is_named(run: Path) -> None:
    [best] = [each.name for each in RunDirectory.open(str(run)).checkpoints() if each.best]

    assert find_checkpoint(str(run)).path == str(run / best)
    assert find_checkpoint(str(run), "epoch-0").path == str(run / "epoch-0")


def test_a_checkpoint_itself_is_taken_with_its_runs_job(run: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(run / "epoch-1", tmp_path / "alone"))

    assert find_checkpoint(f"{run}/epoch-1/").path == str(run / "epoch-1")
    assert find_checkpoint(f"{run}/epoch-1/").job == (run / "job.yaml").read_text()
    assert (find_checkpoint(str(alone)).path, find_checkpoint(str(alone)).job) == (str(alone), None)


def test_runs_and_checkpoints_are_found_in_object_storage(run: Path, object_path: str) -> None:
    storage = open_storage(object_path)
    with storage.staging("run") as staging:
        shutil.copytree(run, staging, dirs_exist_ok=True)
        storage.publish(staging, "run", last="job.yaml")
    there = storage.child("run")

    assert find_checkpoint(there.path, "epoch-0").path == there.child("epoch-0").path
    assert find_checkpoint(there.child("epoch-2").path).job == (run / "job.yaml").read_text()
