"""Two ranks that hold a part of the model each train as one device does, and as two with copies."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
from tests.trainer.training_jobs import (
    FULL,
    LORA,
    TO_THE_END,
    Fields,
    column,
    eight_rows_a_step,
    in_processes,
    job_of,
    train_here,
    train_in_processes,
)

from finetune_api.sharding import COPIES, Sharding
from finetune_trainer.model.parts import mesh_of
from finetune_trainer.training.job import TrainingJob
from finetune_trainer.training.loop import train
from make_tiny_model import make_tiny_model

WAYS: dict[str, Fields] = {"lora": LORA, "full": FULL}
SHARDED: dict[str, Sharding] = {
    "fsdp": Sharding(kind="fsdp"),
    "gathered until the backward pass": Sharding(kind="fsdp", reshard=False),
    "offloaded": Sharding(kind="fsdp", cpu_offload=True),
}
ON_TWO: dict[str, Sharding] = {"copies": COPIES} | SHARDED
TOLERANCE = 1e-5
Runs = Mapping[str, Path]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    return make_tiny_model(directory, tie_word_embeddings=request.param)


def job(model: Path, run: Path, way: str, sharding: Sharding, devices: int) -> TrainingJob:
    """21 steps on 21 rows."""
    fields = WAYS[way] | eight_rows_a_step(devices)
    return job_of(model, run, fields, sharding=sharding, num_epochs=7, max_grad_norm=0.5)


@pytest.fixture(scope="module")
def runs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The run directories of all ways and kinds of parallelism; one spawn of processes trains them."""
    directory = tmp_path_factory.mktemp("runs")
    for way in WAYS:
        train_here(job(model, directory / f"{way}: one device", way, COPIES, 1))
    train_in_processes(
        *(
            job(model, directory / f"{way}: {kind}", way, sharding, 2)
            for way in WAYS
            for kind, sharding in ON_TWO.items()
        )
    )
    return {run.name: run for run in directory.iterdir()}


@pytest.mark.parametrize("kind", ON_TWO)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("numbers", ["loss", "gradNorm", "evalLoss"])
def test_losses_and_gradient_norms_are_those_of_one_device(
    runs: Runs, way: str, kind: str, numbers: str
) -> None:
    expected = column(runs[f"{way}: one device"], numbers)
    assert len(expected) >= 7
    assert column(runs[f"{way}: {kind}"], numbers) == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)


def train_on_two_nodes(jobs: Sequence[TrainingJob], rank: int, num_devices: int) -> None:
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    assert mesh_of(jobs[0].start.sharding, "cpu").shape == (2, 2)
    for each in jobs:
        train(each, TO_THE_END.worker(rank, num_devices, []))


def test_parts_within_nodes_and_copies_between_them_see_the_losses_of_one_device(
    runs: Runs, model: Path, tmp_path: Path
) -> None:
    within = Sharding(kind="fsdp", within_nodes=True)
    jobs = [job(model, tmp_path / way, way, within, 4) for way in WAYS]

    assert in_processes(4, partial(train_on_two_nodes, jobs)) == [0] * 4

    for way in WAYS:
        for numbers in ("loss", "gradNorm", "evalLoss"):
            expected = column(runs[f"{way}: one device"], numbers)
            assert column(tmp_path / way, numbers) == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
