from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from bench.model_shapes import write_description
from pydantic import JsonValue
from tests.cli.command_line import Command, json_of, small_job, write_job

from finetune_cli.plan_view import JobPlan
from make_tiny_rows import make_tiny_rows

HYPERPARAMETERS = Path(__file__).parents[2] / "examples/llmforge/hyperparameters.yaml"


def test_the_blocks_of_llmforges_guide_give_the_numbers_that_their_text_promises(
    finetune: Command, tiny_model: Path, tmp_path: Path
) -> None:
    make_tiny_rows(tmp_path / "train.jsonl", 1000)
    make_tiny_rows(tmp_path / "valid.jsonl", 8, seed=1)
    guide = yaml.safe_load(HYPERPARAMETERS.read_text())
    job = write_job(
        tmp_path / "job.yaml",
        {**guide, "model_id": str(tiny_model), "train_path": "train.jsonl", "valid_path": "valid.jsonl"},
    )

    ended = finetune("plan", job, "-o", "json")
    shown = JobPlan.model_validate_json(ended.out)
    plan, numbers = shown.plan, shown.numbers

    assert ended.code == 0
    assert (plan.rows, plan.validation_rows, plan.context_length) == (1000, 8, 512)
    assert plan.effective_batch_size == 16 * 8
    assert plan.steps_per_epoch == 8, "ceil(ceil(1000 rows / 8 devices) / 16)"
    assert (plan.total_epochs, plan.total_steps) == (10, 80)
    assert plan.checkpoint_epochs == [4, 9], (
        "every 5 epochs is rarer than the 10 times that max_num_checkpoints would allow"
    )
    assert (numbers.learning_rate, numbers.lr_scheduler_type, numbers.num_warmup_steps) == (
        1e-4,
        "cosine",
        10,
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"train_batch_size_per_device": 1},
            {"stepsPerEpoch": 24, "totalEpochs": 5, "totalSteps": 120, "checkpointEpochs": [0, 1, 2, 3, 4]},
        ),
        (
            {"train_batch_size_per_device": 1, "max_num_checkpoints": 2},
            {"totalEpochs": 5, "checkpointEpochs": [2, 4]},
        ),
        (
            {
                "train_batch_size_per_device": 3,
                "num_devices": 2,
                "gradient_accumulation_steps": 3,
                "min_num_update_steps": 13,
            },
            {"effectiveBatchSize": 18, "stepsPerEpoch": 2, "totalEpochs": 7, "totalSteps": 14},
        ),
        (
            {"num_epochs": 8},
            {"contextLength": 512, "effectiveBatchSize": 16, "stepsPerEpoch": 2, "totalSteps": 16},
        ),
    ],
    ids=[
        "as many epochs as 100 steps take",
        "at most two checkpoints",
        "devices and accumulation",
        "the defaults",
    ],
)
def test_the_plan_holds_the_numbers_of_the_job(
    finetune: Command,
    tiny_model: Path,
    tmp_path: Path,
    fields: dict[str, JsonValue],
    expected: dict[str, JsonValue],
) -> None:
    make_tiny_rows(tmp_path / "rows.jsonl", 24)
    job = write_job(
        tmp_path / "job.yaml",
        {
            "model_id": str(tiny_model),
            "train_path": "rows.jsonl",
            "lora_config": {},
            "dtype": "fp32",
            **fields,
        },
    )

    ended = finetune("plan", job, "-o", "json")
    plan = json_of(ended)["plan"]
    assert isinstance(plan, dict)

    assert ended.code == 0
    assert {name: plan[name] for name in expected} == expected


def test_tokens_and_memory_are_in_the_plan(finetune: Command, tiny_model: Path, tmp_path: Path) -> None:
    ended = finetune("plan", small_job(tmp_path, tiny_model, dtype="fp32", lora_config=None), "-o", "json")
    shown = JobPlan.model_validate_json(ended.out)
    tokens, parameters = shown.token_statistics, shown.plan.total_parameters

    assert tokens.rows == 12
    assert tokens.shortest <= tokens.median <= tokens.percentile95 <= tokens.longest <= 512
    assert 0 < tokens.trained_tokens < tokens.tokens == shown.plan.tokens
    assert shown.plan.trainable_parameters == parameters
    assert list(shown.memory_per_device) == ["fp32"]
    memory = shown.memory_per_device["fp32"]
    assert (memory.weights, memory.optimizer) == (4 * parameters, 8 * parameters)
    assert shown.device is None


def test_packed_rows_are_shown_with_how_full_they_are(
    finetune: Command, tiny_model: Path, tmp_path: Path
) -> None:
    fields: dict[str, JsonValue] = {"packing": True, "train_batch_size_per_device": 1, "num_warmup_steps": 0}
    job = small_job(tmp_path, tiny_model, dtype="fp32", **fields)
    lines = [" ".join(line.split()) for line in finetune("plan", job).out.splitlines()]

    assert any(re.fullmatch(r"training rows \d sequences of 12 rows, \d\d\.\d% full", line) for line in lines)


def test_people_get_tables_with_memory_for_either_precision(
    finetune: Command, tiny_model: Path, tmp_path: Path
) -> None:
    ended = finetune("plan", small_job(tmp_path, tiny_model))
    lines = [" ".join(line.split()) for line in ended.out.splitlines()]

    assert (ended.code, ended.err) == (0, "")
    assert f"tiny: {tiny_model}" in lines
    assert "effective batch size 4 = 4 rows x 1 device x 1 accumulated" in lines
    assert "learning rate 0.001, cosine after 1 warm-up steps" in lines
    assert "checkpoints after epoch 1, 2" in lines
    assert "Memory of a device, estimated, GiB GPU, bf16 CPU, fp32" in lines
    assert max(map(len, ended.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ({}, "pushed then the best checkpoint to us/dry, private if it is new"),
        (
            {"merge": True, "public": True},
            "pushed then the best checkpoint, merged, to us/dry, public if it is new",
        ),
        (None, None),
    ],
)
def test_what_is_pushed_to_a_hub_at_the_end_is_in_the_plan(
    finetune: Command,
    tiny_model: Path,
    tmp_path: Path,
    output: dict[str, JsonValue] | None,
    expected: str | None,
) -> None:
    fields: dict[str, JsonValue] = {} if output is None else {"output": {"push_to_hub": "us/dry", **output}}
    shown = finetune("plan", small_job(tmp_path, tiny_model, **fields))

    text = " ".join(shown.out.split())
    assert shown.code == 0
    assert expected in text if expected is not None else "pushed" not in text


def test_a_job_that_fits_no_device_it_names_gets_a_manifest_that_does(
    finetune: Command, tiny_rows: Path, tmp_path: Path
) -> None:
    fields: dict[str, JsonValue] = {
        "model_id": str(write_description("llama-3-8b", tmp_path / "llama")),
        "train_path": str(tiny_rows),
        "train_batch_size_per_device": 32,
        "padding": "max_length",
        "num_devices": 4,
        "num_warmup_steps": 1,
        "worker_resources": {"accelerator_type:A10G": 0.001},
        "lora_config": {},
        "parallelism": "ddp",
    }
    job = write_job(tmp_path / "job.yaml", fields)

    shown = finetune("plan", job)
    fitting = finetune("plan", job, "--fit")
    (tmp_path / "fitting.yaml").write_text(fitting.out)
    again = finetune("plan", str(tmp_path / "fitting.yaml"))

    assert (shown.code, fitting.code, again.code) == (0, 0, 0)
    assert "the weights are not on this machine" in shown.err
    assert "does not fit: needs " in shown.out
    assert "GiB a device, an A10G has 22.0: with " in " ".join(shown.out.split())
    changed = yaml.safe_load(fitting.out)["spec"]
    assert {name for name in changed if changed[name] != fields.get(name)} <= {
        "parallelism",
        "train_batch_size_per_device",
        "gradient_accumulation_steps",
        "eval_batch_size_per_device",
    }
    rows = changed["train_batch_size_per_device"] * changed.get("gradient_accumulation_steps", 1)
    assert rows == 32
    assert "\nfits: needs " in again.out


def test_warnings_of_the_file_and_of_the_data_are_shown_once(
    finetune: Command, tiny_model: Path, tmp_path: Path
) -> None:
    job = small_job(tmp_path, tiny_model, dtype="fp32", context_length=64, output_dir="/mnt")
    ended = finetune("plan", job, "-o", "json")
    warnings = JobPlan.model_validate_json(ended.out).warnings

    assert [line.removeprefix("warning: ") for line in ended.err.splitlines()] == list(warnings)
    assert [warning.partition(" ")[0] for warning in warnings].count("spec.output_dir") == 1
    assert any("longer than 64 tokens and are truncated" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("name", "begins"), [("rate.png", b"\x89PNG"), ("rate.svg", b"<?xml"), ("rate.pdf", b"%PDF")]
)
def test_the_learning_rate_is_drawn_in_the_format_of_the_suffix(
    finetune: Command, tiny_model: Path, tmp_path: Path, name: str, begins: bytes
) -> None:
    ended = finetune("plan", small_job(tmp_path, tiny_model, dtype="fp32"), "--plot", name, "-o", "json")

    assert ended.code == 0
    assert json_of(ended)
    assert ended.err == f"learning-rate plot: {name}\n"
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_a_picture_that_cannot_be_written_is_an_error(
    finetune: Command, tiny_model: Path, tmp_path: Path
) -> None:
    ended = finetune("plan", small_job(tmp_path, tiny_model, dtype="fp32"), "--plot", "absent/rate.png")

    assert ended.code == 1
    assert ended.err == "error: absent/rate.png: No such file or directory; the picture is not written\n"
