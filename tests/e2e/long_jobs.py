"""A job that is long enough to be interrupted in the middle, and what must be true of its end."""

from __future__ import annotations

import json

from pydantic import JsonValue
from tests.e2e.jobs import names_of
from tests.e2e.sightings import Sightings

from devcluster.objects import at
from devcluster.volumes import Volume

MINUTE = 120
"""Epochs of 24 steps that take about a minute on one device."""
CHECKPOINTS = 4
ROWS = 24


def long_job(epochs: int, *, devices: int = 1) -> dict[str, JsonValue]:
    """Fields of a job that validates and saves four times, and keeps all four checkpoints."""
    return {
        "num_devices": devices,
        "num_epochs": epochs,
        "checkpoint_every_n_epochs": epochs // CHECKPOINTS,
        "num_checkpoints_to_keep": CHECKPOINTS + 1,
        "train_batch_size_per_device": 1,
    }


def steps_of(volume: Volume, status: JsonValue) -> list[int]:
    """The steps in the whole lines of metrics.jsonl, in its order."""
    return [int(line["step"]) for line in _step_lines(volume, status)]


def losses_of(volume: Volume, status: JsonValue) -> list[float]:
    """The training losses in the same lines."""
    return [float(line["loss"]) for line in _step_lines(volume, status)]


def _step_lines(volume: Volume, status: JsonValue) -> list[dict[str, float]]:
    assert isinstance(status, dict)
    directory = str(status["runDirectory"]).removeprefix("pvc://finetune/")
    whole = volume.text(f"{directory}/metrics.jsonl").rpartition("\n")[0]
    lines = [json.loads(line) for line in whole.splitlines()]
    return [line for line in lines if "loss" in line]


def check_the_end(volume: Volume, ended: dict[str, JsonValue], epochs: int, *, devices: int = 1) -> None:
    """A `long_job` in which every step was done once, with all its checkpoints."""
    status = at(ended, "status")
    assert isinstance(status, dict)
    steps = epochs * ROWS // devices
    assert at(status, "plan", "totalSteps") == steps
    assert steps_of(volume, status) == list(range(1, steps + 1))
    stored = volume.complete_checkpoints(str(status["runDirectory"]).removeprefix("pvc://finetune/"))
    expected = {f"epoch-{number * epochs // CHECKPOINTS - 1}" for number in range(1, CHECKPOINTS + 1)}
    assert stored == names_of(status["checkpoints"]) == expected


def ray_jobs(sightings: Sightings, name: str) -> set[str]:
    """UIDs of all RayJobs that a FineTuneJob ever had."""
    seen = [each.body for each in sightings.of("RayJob")]
    return {str(at(body, "metadata", "uid")) for body in seen if _owners(body) == [name]}


def _owners(body: dict[str, JsonValue]) -> list[JsonValue]:
    references = at(body, "metadata", "ownerReferences")
    assert isinstance(references, list)
    return [at(each, "name") for each in references if isinstance(each, dict)]
