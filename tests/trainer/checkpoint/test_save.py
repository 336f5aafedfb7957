"""Checkpoints: weights in the base's precision, and a trial of writing before the first step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import load_file
from tests.trainer.model_directories import copy_of, set_keys
from tests.trainer.training_jobs import (
    FULL,
    LORA,
    Fields,
    column,
    files_of,
    job_of,
    saved_in,
    spec_of,
    train_here,
    trained_weights,
)
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.model.load import saved_dtype
from finetune_trainer.training.job import Start
from finetune_trainer.training.setup import load


def base_in(precision: torch.dtype, model: Path, directory: Path) -> Path:
    base = copy_of(model, directory)
    AutoModelForCausalLM.from_pretrained(model, dtype=precision).save_pretrained(base)
    return base


def trained(base: Path, run: Path, way: Fields = FULL, *, export_dtype: str = "auto") -> Path:
    train_here(job_of(base, run, way, num_epochs=1, export_dtype=export_dtype))
    return run / "epoch-0"


def precisions(checkpoint: Path) -> set[torch.dtype]:
    return {weight.dtype for weight in trained_weights(checkpoint).values()}


# Precision


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16, torch.float32])
def test_a_full_model_is_saved_in_the_precision_of_its_base(
    tiny_model: Path, tmp_path: Path, precision: torch.dtype
) -> None:
    base = base_in(precision, tiny_model, tmp_path / "base")
    checkpoint = trained(base, tmp_path / "run")
    sizes = [(each / "model.safetensors").stat().st_size for each in (checkpoint, base)]

    assert precisions(checkpoint) == {precision}
    assert AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto").dtype == precision
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


@pytest.mark.parametrize(("asked", "precision"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_another_precision_is_asked_for(
    tiny_model: Path, tmp_path: Path, asked: str, precision: torch.dtype
) -> None:
    base = base_in(torch.float16, tiny_model, tmp_path / "base")
    checkpoint = trained(base, tmp_path / "run", export_dtype=asked)
    assert precisions(checkpoint) == {precision}
    assert AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto").dtype == precision


def test_a_base_that_names_no_precision_has_that_of_its_weights(tiny_model: Path, tmp_path: Path) -> None:
    base = base_in(torch.bfloat16, tiny_model, tmp_path / "base")
    set_keys(base / "config.json", dtype=None)
    assert saved_dtype(spec_of(base, FULL)) == torch.bfloat16


def test_tied_weights_are_saved_once(tied_tiny_model: Path, tmp_path: Path) -> None:
    base = base_in(torch.bfloat16, tied_tiny_model, tmp_path / "base")
    checkpoint = trained(base, tmp_path / "run")
    assert load_file(checkpoint / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()


def test_the_precision_of_what_is_saved_changes_nothing_that_is_trained(
    tiny_model: Path, tmp_path: Path
) -> None:
    base = base_in(torch.bfloat16, tiny_model, tmp_path / "base")
    short, full = (trained(base, tmp_path / each, export_dtype=each) for each in ("bf16", "fp32"))

    assert column(short.parent, "loss") == column(full.parent, "loss")
    assert column(short.parent, "evalLoss") == column(full.parent, "evalLoss")
    rounded = {name: weight.to(torch.bfloat16) for name, weight in trained_weights(full).items()}
    assert all(torch.equal(weight, rounded[name]) for name, weight in trained_weights(short).items())


@pytest.mark.parametrize("embeddings", ["untied", "tied"])
def test_a_run_resumes_with_the_weights_that_were_trained_not_with_those_rounded_for_use(
    tiny_model: Path, tied_tiny_model: Path, tmp_path: Path, embeddings: str
) -> None:
    base = {"untied": tiny_model, "tied": tied_tiny_model}[embeddings]
    exact = trained(base, tmp_path / "exact", export_dtype="fp32")
    rounded = trained(base, tmp_path / "rounded", export_dtype="bf16")
    expected, resumed = (
        load(
            Start(spec_of(base, FULL), "fp32", str(each.parent), each.name), torch.device("cpu")
        ).model.state_dict()
        for each in (exact, rounded)
    )
    assert all(torch.equal(weight, expected[name]) for name, weight in resumed.items())
    assert {weight.dtype for weight in resumed.values()} == {torch.float32}


def test_what_is_saved_in_fp32_is_not_saved_twice(tiny_model: Path, tmp_path: Path) -> None:
    kept = {"state/optimizer.pt", "state/position.json", "state/random.pt"}
    for name, way in {"lora": LORA, "full": FULL}.items():
        files = files_of(trained(tiny_model, tmp_path / name, way))
        assert {file for file in files if file.startswith("state/")} == kept


def test_adapters_are_saved_in_fp32_whatever_their_base_is_in(tiny_model: Path, tmp_path: Path) -> None:
    base = base_in(torch.bfloat16, tiny_model, tmp_path / "base")
    assert precisions(trained(base, tmp_path / "run", LORA)) == {torch.float32}


# Before the first step


@pytest.mark.parametrize("way", [LORA, FULL], ids=["lora", "full"])
def test_what_cannot_be_written_ends_the_run_before_its_first_step(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Fields
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise ValueError("this tokenizer cannot be saved")

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", refuse)
    with pytest.raises(ValueError, match="this tokenizer cannot be saved"):
        trained(tiny_model, tmp_path / "run", way)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_storage_that_takes_no_files_ends_the_run_before_its_first_step(
    tiny_model: Path, tmp_path: Path
) -> None:
    job = job_of(tiny_model, tmp_path / "run", LORA, num_epochs=1)
    (tmp_path / "run" / ".trial").mkdir()
    with pytest.raises(FineTuneError, match=r"\.trial") as raised:
        train_here(job)
    assert raised.value.failure_class is FailureClass.STORAGE_ERROR
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_full_disk_ends_the_run_before_its_first_step(
    tiny_model: Path, tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    job = job_of(tiny_model, tmp_path / "run", LORA, num_epochs=1)
    with full_disk(), pytest.raises(FineTuneError, match="too large") as raised:
        train_here(job)
    assert raised.value.failure_class is FailureClass.STORAGE_ERROR
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_trial_leaves_nothing_behind(tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = trained(tiny_model, tmp_path / "run", LORA)
    assert saved_in(checkpoint.parent) == {"epoch-0"}
    assert not list(checkpoint.parent.glob(".*"))
