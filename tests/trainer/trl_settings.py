"""The settings with which TRL's SFTTrainer takes the same steps as a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trl.trainer.sft_config import SFTConfig

from finetune_trainer.training.job import TrainingJob


def settings(job: TrainingJob, directory: Path) -> SFTConfig:
    """The settings for a data set that holds the rows of all epochs, in order."""
    return SFTConfig(**of_any_trainer(job, directory))


def of_any_trainer(job: TrainingJob, directory: Path) -> dict[str, Any]:
    """The same for whichever of TRL's trainers."""
    return {
        "output_dir": str(directory),
        "num_train_epochs": 1,
        "per_device_train_batch_size": job.prepared.numbers.train_batch_size_per_device,
        "gradient_accumulation_steps": job.prepared.numbers.gradient_accumulation_steps,
        "learning_rate": job.prepared.numbers.learning_rate,
        "lr_scheduler_type": job.prepared.numbers.lr_scheduler_type,
        "warmup_steps": job.prepared.numbers.num_warmup_steps,
        "max_grad_norm": job.prepared.spec.max_grad_norm,
        "weight_decay": job.prepared.spec.weight_decay,
        "optim": "adamw_torch",
        "train_sampling_strategy": "sequential",
        "max_length": None,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "logging_first_step": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
