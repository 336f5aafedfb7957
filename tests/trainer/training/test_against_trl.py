"""TRL's SFTTrainer as the oracle.

On the same rows in the same order, it must give the same losses and the same weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from datasets import Dataset
from numpy.typing import NDArray
from tests.trainer.training_jobs import (
    FULL,
    LORA,
    Fields,
    column,
    job_of,
    largest_difference,
    some_rows,
    train_here,
    trained_weights,
)
from tests.trainer.trl_settings import settings
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Trainer
from trl.trainer.sft_trainer import SFTTrainer

from finetune_trainer.data.batches import row_order
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.training.job import TrainingJob

WAYS: dict[str, Fields] = {
    "lora": LORA | {"learning_rate": 5e-3},
    "full": FULL | {"learning_rate": 1e-3},
}


@pytest.fixture(
    scope="module",
    params=[("lora", 4, 24), ("full", 4, 24), ("lora", 1, 18)],
    ids=["lora", "full", "a last step of half a micro-batch"],
)
def trained_both_ways(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainingJob, SFTTrainer]:
    way, epochs, rows = request.param
    directory = tmp_path_factory.mktemp("trl")
    job = job_of(
        tiny_model,
        directory / "ours",
        WAYS[way],
        train=some_rows(rows, seed=5),
        validation=None,
        num_epochs=epochs,
        train_batch_size_per_device=4,
        gradient_accumulation_steps=2,
        weight_decay=0.1,
    )
    train_here(job)
    trainer = sft_trainer(job, model_for_trl(job, tiny_model), directory / "trl")
    trainer.train()
    return job, trainer


def model_for_trl(job: TrainingJob, model: Path) -> PreTrainedModel | peft.PeftModel:
    """The model as peft and transformers make it; new adapters depend on the spec's seed."""
    base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model)
    if job.prepared.spec.lora_config is None:
        return base
    torch.manual_seed(job.prepared.spec.seed)
    adapted = peft.get_peft_model(
        base,
        peft.LoraConfig(
            r=job.prepared.spec.lora_config.r, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    assert isinstance(adapted, peft.PeftModel)
    return adapted


def sft_trainer(job: TrainingJob, model: PreTrainedModel | peft.PeftModel, directory: Path) -> SFTTrainer:
    """SFTTrainer with the job's numbers, on the tokenized rows of all epochs in the job's order."""
    orders = [
        row_order(job.prepared.spec.seed, epoch, len(job.prepared.train))
        for epoch in range(job.prepared.numbers.total_epochs)
    ]
    return SFTTrainer(
        model=model,
        args=settings(job, directory),
        train_dataset=dataset(job.prepared.train, np.concatenate(orders)),
        processing_class=AutoTokenizer.from_pretrained(job.prepared.spec.model_id),
    )


def dataset(rows: TokenizedRows, order: NDArray[np.int64]) -> Dataset:
    picked = [rows.row(index) for index in order]
    return Dataset.from_dict(
        {
            "input_ids": [ids.tolist() for ids, _ in picked],
            "labels": [np.where(trained, ids, -100).tolist() for ids, trained in picked],
        }
    )


def logged(trainer: Trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_every_loss_is_trls(trained_both_ways: tuple[TrainingJob, SFTTrainer]) -> None:
    job, trainer = trained_both_ways
    assert column(job.start.run_directory, "loss") == pytest.approx(logged(trainer, "loss"), abs=1e-5)


def test_every_gradient_norm_is_trls(trained_both_ways: tuple[TrainingJob, SFTTrainer]) -> None:
    job, trainer = trained_both_ways
    assert column(job.start.run_directory, "gradNorm") == pytest.approx(
        logged(trainer, "grad_norm"), abs=1e-5
    )


def test_every_learning_rate_is_trls(trained_both_ways: tuple[TrainingJob, SFTTrainer]) -> None:
    job, trainer = trained_both_ways
    assert column(job.start.run_directory, "learningRate") == pytest.approx(
        logged(trainer, "learning_rate"), abs=1e-12
    )
    assert len(column(job.start.run_directory, "learningRate")) == job.prepared.numbers.total_steps


def test_the_trained_weights_are_trls(
    trained_both_ways: tuple[TrainingJob, SFTTrainer], tmp_path: Path
) -> None:
    job, trainer = trained_both_ways
    trainer.save_model(str(tmp_path))
    ours = trained_weights(Path(job.start.run_directory) / f"epoch-{job.prepared.numbers.total_epochs - 1}")
    assert largest_difference(ours, trained_weights(tmp_path)) < (
        1e-5 if job.prepared.spec.lora_config else 5e-4
    )
