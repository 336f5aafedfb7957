"""`finetune extend`, and the options of other commands that change a job: `--set` and `--restart`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from pydantic import JsonValue
from tests.cli.command_line import Command, json_of, only_run, process, small_job

from finetune_cli.plan_view import JobPlan


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """With a finished run of two epochs in `runs`, from a manifest whose learning rate was changed."""
    directory = tmp_path_factory.mktemp("extend")
    small_job(directory, tiny_model)
    ended = process("run", "job.yaml", "--storage", "runs", "--set", "spec.learning_rate=2e-4", cwd=directory)
    assert ended.code == 0, ended.err
    return directory


def lines(run: Path) -> list[dict[str, JsonValue]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_field_that_is_set_is_in_the_run_and_its_manifest(directory: Path) -> None:
    run = only_run(directory / "runs")

    assert yaml.safe_load((run / "job.yaml").read_text())["spec"]["learning_rate"] == 2e-4
    assert max(float(str(line["learningRate"])) for line in lines(run) if "loss" in line) == 2e-4


def test_a_run_is_extended_beside_the_old_one_and_started_anew(
    directory: Path, finetune: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory)
    old = only_run(directory / "runs")
    extended = finetune("extend", old, "--epochs", "+1", "-o", "json")
    again = finetune("extend", old, "--epochs", "+1")

    assert (extended.code, again.code) == (0, 0), extended.err
    document = json_of(extended)
    status, spec = document["status"], document["spec"]
    assert isinstance(status, dict)
    assert isinstance(spec, dict)
    assert (spec["resume_from"], spec["num_epochs"]) == (str(old), 3)
    assert (status["phase"], status["message"]) == ("Succeeded", "trained 9 steps")
    run = Path(str(status["modelPath"])).parent
    assert run.parent == old.parent
    assert f"going on from {old}/epoch-1, after step 6" in extended.err
    assert "this run has already finished; --restart deletes it and trains again" in again.out
    assert [line["step"] for line in lines(old) if "loss" in line] == list(range(1, 7))


@pytest.mark.parametrize("command", ["run", "plan", "validate"])
def test_a_wrong_value_is_the_fields_error_and_the_file_stays(
    finetune: Command, tiny_model: Path, tmp_path: Path, command: str
) -> None:
    job = small_job(tmp_path, tiny_model)
    before = job.read_bytes()

    ended = finetune(command, job, "--set", "spec.lora_config.r=many", "--set", "spec.learning_rte=1")

    where = f"{job}: " if command == "validate" else ""
    assert ended.code == 1
    assert ended.err.splitlines() == [
        f"error: {where}spec.lora_config.r: must be a whole number, is 'many'",
        f"error: {where}spec.learning_rte: is not a known field; did you mean learning_rate?",
    ]
    assert job.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["job.yaml", "train.jsonl", "valid.jsonl"]


def test_a_plan_is_that_of_the_changed_job(finetune: Command, tiny_model: Path, tmp_path: Path) -> None:
    job = small_job(tmp_path, tiny_model, dtype="fp32")

    ended = finetune("plan", job, "-o", "json", "--set", "spec.max_steps=5", "--set", "spec.eval_steps=2")
    plan = JobPlan.model_validate_json(ended.out)
    shown = finetune("plan", job, "--set", "spec.max_steps=5", "--set", "spec.eval_steps=2")

    assert (plan.plan.total_steps, plan.plan.total_epochs, plan.numbers.eval_steps) == (5, 2, 2)
    assert plan.warnings == (
        "spec.num_epochs has no effect: max_steps is set, and decides how long the run is",
    )
    assert "checkpoints after epoch 1 and after step 5; validation every 2 steps too" in " ".join(
        shown.out.split()
    )
