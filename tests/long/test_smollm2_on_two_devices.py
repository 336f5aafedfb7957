"""A real model on two ranks, with copies and in parts, sees the losses and gradient norms of one device.

Its embeddings are tied. `tests/trainer/parallel/test_fsdp.py` shows the same of a small one, in more ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.trainer.training_jobs import (
    FULL,
    LORA,
    Fields,
    column,
    eight_rows_a_step,
    job_of,
    train_here,
    train_in_processes,
)

from finetune_api.sharding import COPIES, Sharding
from finetune_trainer.training.job import TrainingJob

pytestmark = pytest.mark.timeout(3600)

WAYS: dict[str, Fields] = {"lora": LORA | {"learning_rate": 1e-4}, "full": FULL | {"learning_rate": 1e-5}}
"""Each at its default learning rate: the larger it is, the faster grows what rounding sets apart."""
ON_TWO: dict[str, Sharding] = {
    "copies": COPIES,
    "fsdp": Sharding(kind="fsdp"),
    "offloaded": Sharding(kind="fsdp", cpu_offload=True),
}
STEPS = 21
TOLERANCE = 1e-5
Runs = Mapping[str, Path]


def job(model: Path, run: Path, way: str, sharding: Sharding, devices: int) -> TrainingJob:
    """21 steps on 21 rows, and a checkpoint at the end."""
    epochs = STEPS // 3
    return job_of(
        model,
        run,
        WAYS[way] | eight_rows_a_step(devices),
        sharding=sharding,
        num_epochs=epochs,
        checkpoint_every_n_epochs=epochs,
    )


@pytest.fixture(scope="module", params=WAYS)
def runs(request: pytest.FixtureRequest, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The run directories of a way, by kind of parallelism."""
    directory, way = tmp_path_factory.mktemp("runs"), request.param
    train_here(job(smollm2, directory / "one device", way, COPIES, 1))
    for kind, sharding in ON_TWO.items():
        train_in_processes(job(smollm2, directory / kind, way, sharding, 2), seconds=1200)
    return {run.name: run for run in directory.iterdir()}


@pytest.mark.parametrize("numbers", ["loss", "gradNorm", "evalLoss"])
@pytest.mark.parametrize("kind", ON_TWO)
def test_losses_and_gradient_norms_are_those_of_one_device(runs: Runs, kind: str, numbers: str) -> None:
    found, expected = (column(runs[which], numbers) for which in (kind, "one device"))

    assert len(expected) == (1 if numbers == "evalLoss" else STEPS)
    assert found == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
