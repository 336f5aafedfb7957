"""A job on two devices of this machine, which Ray's workers are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.cli.command_line import Command, only_run, process, small_job, terminated
from tests.cli.interrupting import check_that_ctrl_c_before_the_first_step_ends_at_once
from tests.trainer.training_jobs import column

from finetune_trainer.checkpoint.state import read_position
from finetune_trainer.storage.run_directory import RunDirectory

TWO = ("--devices", "2")
ACTORS = [
    "ray::RayTrainWorker",
    "ray::RayTrainWorker",
    "ray::SynchronizationActor",
    "ray::TrainController.run",
]
"""What Ray runs besides its own processes: another that waits would take processors from training."""


def test_ctrl_c_before_the_first_step_ends_at_once_and_says_so(tmp_path: Path, tiny_model: Path) -> None:
    check_that_ctrl_c_before_the_first_step_ends_at_once(tmp_path, tiny_model, *TWO)


def test_sigterm_to_every_process_leaves_a_snapshot_from_which_devices_that_share_the_model_go_on_as_one(
    tmp_path: Path, tiny_model: Path, finetune: Command
) -> None:
    """First each device has a copy. All losses are those of one device with the same rows in a step."""
    fields: dict[str, JsonValue] = {
        "train_batch_size_per_device": 2,
        "num_epochs": 40,
        "checkpoint_every_n_epochs": 20,
    }
    copies = small_job(tmp_path, tiny_model, **fields).rename(tmp_path / "copies.yaml")
    parts = small_job(tmp_path, tiny_model, **fields, parallelism="fsdp").rename(tmp_path / "parts.yaml")
    alone = small_job(tmp_path, tiny_model, **fields, gradient_accumulation_steps=2)

    stopped = terminated(tmp_path, "run", str(copies), "--storage", "two", *TWO, with_children=True)

    assert (stopped.code, stopped.err) == (130, "")
    actors = sorted(
        title for title in stopped.processes if title.startswith("ray::") and "Agent" not in title
    )
    assert actors == ACTORS
    said = re.search(
        r"^Suspended: stopped after step (\d+) of 120; run again to resume$", stopped.out, re.MULTILINE
    )
    assert said is not None, stopped.out
    run = only_run(tmp_path / "two")
    newest = RunDirectory.open(str(run)).newest()
    # Where an epoch ended with that step it may be a checkpoint.
    assert newest is not None
    assert read_position((run / newest / "state/position.json").read_text()).step == int(said[1])

    resumed = process("run", parts, "--storage", "two", *TWO, "-o", "json", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    assert f"resuming from {run / newest}" in resumed.err
    whole = finetune("run", alone, "--storage", "one", "-o", "json")
    assert whole.code == 0, whole.err
    other = only_run(tmp_path / "one")
    for name in ("loss", "gradNorm", "evalLoss"):
        expected = column(other, name)
        assert len(expected) == (2 if name == "evalLoss" else 120)
        assert column(run, name) == pytest.approx(expected, abs=1e-5)
