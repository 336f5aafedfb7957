"""A job trained by others: TRL's SFTTrainer and transformers' Trainer, with the same rows in each step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from finetune_api.numbers import ResolvedPrecision
from finetune_trainer.data.batches import row_order
from finetune_trainer.data.tokens import IGNORED
from finetune_trainer.model.load import load_tokenizer
from finetune_trainer.plan.prepare import Prepared
from finetune_trainer.tasks.objective import Model

Build = Callable[[Prepared, Model, ResolvedPrecision, Path], Trainer]


class AfterStep(TrainerCallback):
    """Calls a function after each optimizer step."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def on_step_end(self, *_arguments: object, **_more: object) -> None:
        """See `TrainerCallback`."""
        self._call()


def trl(prepared: Prepared, model: Model, dtype: ResolvedPrecision, directory: Path) -> Trainer:
    """SFTTrainer, which pads the rows of a micro-batch to the longest."""
    settings = SFTConfig(max_length=None, **_settings(prepared, dtype, directory))
    return SFTTrainer(
        model=model,
        args=settings,
        train_dataset=_rows(prepared),
        processing_class=load_tokenizer(prepared.spec),
    )


def transformers(prepared: Prepared, model: Model, dtype: ResolvedPrecision, directory: Path) -> Trainer:
    """Trainer, with transformers' own collator."""
    set_seed(prepared.spec.seed)
    tokenizer = load_tokenizer(prepared.spec)
    return Trainer(
        model=model,
        args=TrainingArguments(**_settings(prepared, dtype, directory)),
        train_dataset=cast("Any", _rows(prepared)),
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
    )


def losses_of(trainer: Trainer) -> list[float]:
    """The loss of each step, as it was logged."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _rows(prepared: Prepared) -> Dataset:
    """The tokenized rows of all epochs, in the job's order."""
    rows = prepared.train
    epochs = range(prepared.numbers.total_epochs)
    order = np.concatenate([row_order(prepared.spec.seed, epoch, len(rows)) for epoch in epochs])
    picked = [rows.row(int(index)) for index in order]
    return Dataset.from_dict(
        {
            "input_ids": [ids.tolist() for ids, _ in picked],
            "labels": [np.where(trained, ids, IGNORED).tolist() for ids, trained in picked],
        }
    )


def _settings(prepared: Prepared, dtype: ResolvedPrecision, directory: Path) -> dict[str, Any]:
    """The arguments with which transformers' Trainer takes the job's steps."""
    spec, numbers = prepared.spec, prepared.numbers
    on_gpu = torch.cuda.is_available()
    return {
        "output_dir": str(directory),
        "num_train_epochs": 1,
        "per_device_train_batch_size": numbers.train_batch_size_per_device,
        "gradient_accumulation_steps": numbers.gradient_accumulation_steps,
        "learning_rate": numbers.learning_rate,
        "lr_scheduler_type": numbers.lr_scheduler_type,
        "warmup_steps": numbers.num_warmup_steps,
        "max_grad_norm": spec.max_grad_norm,
        "weight_decay": spec.weight_decay,
        "optim": "adamw_torch_fused",
        "train_sampling_strategy": "sequential",
        "bf16": dtype == "bf16",
        "use_cpu": not on_gpu,
        "gradient_checkpointing": spec.recomputes_activations,
        "logging_steps": 1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
