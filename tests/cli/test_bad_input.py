"""Bad input: one clear line for each problem, exit code 1, and nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.cli.command_line import Command, small_job

from finetune_api.manifest import read_manifest
from finetune_trainer.local import local_run_directory

USER, ASSISTANT = {"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}
RIGHT_ROW = json.dumps({"messages": [USER, ASSISTANT]})


def files_under(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def refused(finetune: Command, directory: Path) -> list[str]:
    """Runs job.yaml, which must exit with 1 and change no file; returns the lines of standard error."""
    before = files_under(directory)

    ended = finetune("run", "job.yaml", "--storage", "runs", "-o", "json")

    assert ended.code == 1
    assert ended.out == ""
    assert files_under(directory) == before
    assert not (directory / "runs").exists()
    return [line for line in ended.err.splitlines() if not line.startswith(("training on ", "warning: "))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "error: job.yaml: No such file or directory"),
        ("", "error: job.yaml: is empty"),
        ("model_id: [", "error: job.yaml:1:12: expected the node content, but found '<stream end>'"),
    ],
    ids=["missing", "empty", "not YAML"],
)
def test_a_file_that_cannot_be_read(finetune: Command, tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "job.yaml").write_text(text)

    assert refused(finetune, tmp_path) == [said]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"learning_rat": 1e-4}, ["spec.learning_rat: is not a known field; did you mean learning_rate?"]),
        ({"train_batch_size_per_device": 0}, ["spec.train_batch_size_per_device: must be at least 1, is 0"]),
        ({"task": "vision_language_tuning"}, ["spec.task: is not supported yet"]),
        (
            {"min_update_steps": 5, "min_num_update_steps": 6},
            ["spec.min_num_update_steps: means the same as spec.min_update_steps"],
        ),
        ({"num_warmup_steps": 6}, ["spec.num_warmup_steps: 6 warm-up steps leave none of the run's 6"]),
        ({"lora_config": {"target_modules": ["c_attn"]}}, ["spec.lora_config.target_modules: ", "q_proj"]),
        ({"model_id": "no/such/model"}, ["spec.model_id: no/such/model is not there"]),
        ({"train_path": "absent.jsonl"}, ["absent.jsonl: "]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_field_that_is_wrong(
    finetune: Command, tiny_model: Path, tmp_path: Path, fields: dict[str, JsonValue], said: list[str]
) -> None:
    small_job(tmp_path, tiny_model, **fields)

    [error] = refused(finetune, tmp_path)
    assert error.startswith(f"error: {said[0]}")
    assert all(word in error for word in said)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("", "train.jsonl: holds no rows"),
        ('{"messages": [', "train.jsonl:2: "),
        (
            json.dumps({"messages": [USER, {"role": "robot", "content": "That."}]}),
            "train.jsonl:2: messages[1].role: ",
        ),
        (
            json.dumps({"messages": [USER, {"role": "assistant", "content": " "}]}),
            "train.jsonl:2: messages[1].content: ",
        ),
        (json.dumps({"messages": [USER]}), "train.jsonl:2: "),
    ],
    ids=["empty file", "broken JSON", "wrong role", "empty content", "nothing to train on"],
)
def test_a_row_that_is_wrong(
    finetune: Command, tiny_model: Path, tmp_path: Path, rows: str, said: str
) -> None:
    small_job(tmp_path, tiny_model)
    (tmp_path / "train.jsonl").write_text(f"{RIGHT_ROW}\n{rows}\n" if rows else "")

    [error] = refused(finetune, tmp_path)
    assert error.startswith(f"error: {said}")


def test_bad_rows_of_both_files_are_told_at_once(finetune: Command, tiny_model: Path, tmp_path: Path) -> None:
    small_job(tmp_path, tiny_model)
    (tmp_path / "train.jsonl").write_text(f"{RIGHT_ROW}\nnonsense\n[]\n")
    (tmp_path / "valid.jsonl").write_text("")

    assert [error.split(": ")[1] for error in refused(finetune, tmp_path)] == [
        "train.jsonl:2",
        "train.jsonl:3",
        "valid.jsonl",
    ]


def test_of_very_many_bad_rows_the_first_hundred_are_told(
    finetune: Command, tiny_model: Path, tmp_path: Path
) -> None:
    small_job(tmp_path, tiny_model)
    (tmp_path / "train.jsonl").write_text("nonsense\n" * 250)

    errors = refused(finetune, tmp_path)
    assert errors[99].startswith("error: train.jsonl:100: ")
    assert errors[100:] == ["error: and 150 more"]


def test_a_row_with_nothing_left_to_train_on_after_truncation(
    finetune: Command, tiny_model: Path, tmp_path: Path
) -> None:
    small_job(tmp_path, tiny_model, context_length=64)
    long = {"messages": [{"role": "user", "content": "What is this? " * 40}, ASSISTANT]}
    (tmp_path / "train.jsonl").write_text(f"{RIGHT_ROW}\n{json.dumps(long)}\n")

    [error] = refused(finetune, tmp_path)
    assert error.startswith("error: train.jsonl:2: ")


def test_a_model_without_a_chat_template(finetune: Command, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "plain")
    (tmp_path / "plain/chat_template.jinja").unlink()
    small_job(tmp_path, tmp_path / "plain")

    [error] = refused(finetune, tmp_path)
    assert error.startswith("error: ")
    assert "spec.generation_config.prompt_format" in error


def test_a_tokenizer_without_pad_and_end(finetune: Command, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "plain")
    settings = json.loads((tmp_path / "plain/tokenizer_config.json").read_text())
    (tmp_path / "plain/tokenizer_config.json").write_text(
        json.dumps({**settings, "pad_token": None, "eos_token": None})
    )
    small_job(tmp_path, tmp_path / "plain")

    [error] = refused(finetune, tmp_path)
    assert error.startswith("error: spec.model_id: ")
    assert "pad_token" in error


def test_the_run_directory_of_another_job(finetune: Command, tiny_model: Path, tmp_path: Path) -> None:
    manifest = read_manifest(small_job(tmp_path, tiny_model))
    run = Path(local_run_directory(manifest, str(tmp_path / "runs"), None).path)
    run.mkdir(parents=True)
    (run / "job.yaml").write_text("kind: FineTuneJob\nmetadata: {name: another}\n")
    before = files_under(tmp_path)

    ended = finetune("run", "job.yaml", "--storage", "runs", "-o", "json")

    assert (ended.code, ended.out) == (1, "")
    assert ended.err.splitlines()[-1].startswith(f"error: {run}")
    assert files_under(tmp_path) == before


def test_a_storage_that_is_no_directory(finetune: Command, tiny_model: Path, tmp_path: Path) -> None:
    small_job(tmp_path, tiny_model)
    (tmp_path / "runs").write_text("a file\n")
    before = files_under(tmp_path)

    ended = finetune("run", "job.yaml", "--storage", "runs")

    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith("error: ")
    assert "runs" in ended.err
    assert files_under(tmp_path) == before


@pytest.mark.parametrize("arguments", [["merge", "absent", "merged"], ["merge", "empty", "merged"]])
def test_a_checkpoint_that_is_none(finetune: Command, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "empty").mkdir()

    ended = finetune(*arguments)

    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("error: ")
    assert "adapter_config.json" in ended.err
    assert not (tmp_path / "merged").exists()
