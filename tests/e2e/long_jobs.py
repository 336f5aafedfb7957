"""A job that is long enough to be interrupted in the middle, and what must be true of its end."""

from __future__ import annotations

import json

from pydantic import JsonValue
from tests.e2e.jobs import names_of
from tests.e2e.sightings import Sightings

from devcluster.objects import at
from devcluster.volumes import Volume

LONG: dict[str, JsonValue] = {
    "num_epochs": 120,
    "checkpoint_every_n_epochs": 30,
    "num_checkpoints_to_keep": 5,
    "train_batch_size_per_device": 1,
}
"""2880 steps, about a minute."""


def steps_of(volume: Volume, status: JsonValue) -> list[int]:
    """The steps that metrics.jsonl tells of, in its order."""
    assert isinstance(status, dict)
    directory = str(status["runDirectory"]).removeprefix("pvc://finetune/")
    lines = [json.loads(line) for line in volume.text(f"{directory}/metrics.jsonl").splitlines()]
    return [int(line["step"]) for line in lines if "loss" in line]


def check_the_end(volume: Volume, ended: dict[str, JsonValue]) -> None:
    """A run in which every step was done once, with all its checkpoints."""
    status = at(ended, "status")
    assert isinstance(status, dict)
    assert steps_of(volume, status) == list(range(1, int(str(at(status, "plan", "totalSteps"))) + 1))
    stored = volume.complete_checkpoints(str(status["runDirectory"]).removeprefix("pvc://finetune/"))
    assert stored == names_of(status["checkpoints"]) == {"epoch-29", "epoch-59", "epoch-89", "epoch-119"}


def ray_jobs(sightings: Sightings) -> set[str]:
    """UIDs of all RayJobs that ever were."""
    return {str(at(each.body, "metadata", "uid")) for each in sightings.of("RayJob")}
