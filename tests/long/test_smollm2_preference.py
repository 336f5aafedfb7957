"""Preference tuning of a real model on real pairs takes the steps of TRL's DPOTrainer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tests.trainer.training.test_against_trl import model_for_trl
from tests.trainer.training_jobs import Fields, train_here
from tests.trainer.trl_preference import check_that_steps_are_those_of, dpo_settings
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from trl.trainer.dpo_trainer import DPOTrainer

from finetune_api.manifest import read_spec
from finetune_trainer.data.batches import row_order
from finetune_trainer.plan.prepare import prepare
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.training.job import Start, TrainingJob

pytestmark = pytest.mark.timeout(3600)

STEPS = 10
PAIRS_OF_A_STEP = 4
WAYS: dict[str, Fields] = {"lora": {"lora_config": {"r": 8}}, "full": {}}
"""Each at its default learning rate: the larger it is, the faster grows what rounding sets apart."""


def job_of(model: Path, pairs: Path, run_directory: Path, way: str) -> TrainingJob:
    """Ten steps, each of two micro-batches of two pairs."""
    spec = read_spec(
        {
            "model_id": str(model),
            "train_path": str(pairs),
            "task": "preference_tuning",
            "num_epochs": 1,
            "train_batch_size_per_device": 2,
            "gradient_accumulation_steps": PAIRS_OF_A_STEP // 2,
            "gradient_checkpointing": False,
            **WAYS[way],
        }
    )
    run = RunDirectory.open(str(run_directory))
    run.claim("kind: FineTuneJob", "a test")
    return TrainingJob("preference", Start(spec, "fp32", run.path, None), prepare(spec))


def texts(pairs: Path, job: TrainingJob, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The pairs in the job's order, as texts: prompts as the chat template writes them, and answers."""
    read = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    ordered = [read[index] for index in row_order(job.prepared.spec.seed, 0, len(read))]
    return Dataset.from_dict(
        {
            "prompt": [
                tokenizer.apply_chat_template(pair["chosen"][:-1], add_generation_prompt=True, tokenize=False)
                for pair in ordered
            ],
            **{
                answer: [pair[answer][-1]["content"] for pair in ordered] for answer in ("chosen", "rejected")
            },
        }
    )


def clip(parameters: Iterable[torch.nn.Parameter], max_norm: float, *_more: float) -> torch.Tensor:
    """What accelerate does, with the norm of fp64: PyTorch's is off on CPUs for an embedding of this size."""
    trained = [each for each in parameters if each.grad is not None]
    squares = torch.stack([each.grad.double().square().sum() for each in trained if each.grad is not None])
    norm = squares.sum().sqrt().float()
    torch.nn.utils.clip_grads_with_norm_(trained, max_norm, norm)
    return norm


@pytest.mark.parametrize("way", WAYS)
def test_its_steps_are_those_of_trls_dpo_trainer_who_tokenizes_the_pairs_itself(
    way: str, smollm2: Path, stdlib_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    first = stdlib_pairs.read_text(encoding="utf-8").splitlines(keepends=True)[: STEPS * PAIRS_OF_A_STEP]
    pairs.write_text("".join(first), encoding="utf-8")
    job = job_of(smollm2, pairs, tmp_path / "ours", way)
    train_here(job)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    trainer = DPOTrainer(
        model=model_for_trl(job, smollm2),
        args=dpo_settings(job, tmp_path / "trl"),
        train_dataset=texts(pairs, job, tokenizer),
        processing_class=tokenizer,
    )
    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", clip)
    trainer.train()

    check_that_steps_are_those_of(trainer, tmp_path / "ours", steps=STEPS)
