"""Direct preference optimisation beside TRL's DPOTrainer: its settings, and what must be equal."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.trainer.training_jobs import column, lines_of
from tests.trainer.trl_settings import of_any_trainer
from transformers import Trainer
from trl.trainer.dpo_config import DPOConfig

from finetune_trainer.training.job import TrainingJob

METRICS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


def dpo_settings(job: TrainingJob, directory: Path) -> DPOConfig:
    """The settings for a data set that holds the pairs of all epochs, in order."""
    return DPOConfig(beta=job.prepared.spec.preferences.beta, **of_any_trainer(job, directory))


def metric(run: Path, name: str) -> list[float]:
    """The values of a metric of steps, in order."""
    of_steps = [line["metrics"] for line in lines_of(run) if "loss" in line]
    return [float(str(each[name])) for each in of_steps if isinstance(each, dict)]


def check_that_steps_are_those_of(trainer: Trainer, run: Path, *, steps: int) -> None:
    """Losses, gradient norms and metrics of a run, beside what a trainer of TRL's has logged."""

    def logged(name: str) -> list[float]:
        return [entry[name] for entry in trainer.state.log_history if name in entry]

    assert len(column(run, "loss")) == steps
    for ours, theirs in (("loss", "loss"), ("gradNorm", "grad_norm")):
        assert column(run, ours) == pytest.approx(logged(theirs), rel=1e-5, abs=1e-5)
    for name in METRICS:
        assert metric(run, name) == pytest.approx(logged(name), abs=1e-5)
