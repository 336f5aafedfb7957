"""Runs that have learnt a few answers by heart, for tests that ask them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.trainer.training_jobs import Fields, spec_of, train_here

from finetune_api.manifest import Manifest, Metadata
from finetune_trainer.plan.prepare import prepare
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.training.job import Start, TrainingJob

ANSWERS = {"Ping?": "Pong.", "One?": "Two,\nand three.", "Where?": "Here and there.", "Who?": "No one."}


def run_that_answers(base: Path, directory: Path, fields: Fields, answers: dict[str, str] = ANSWERS) -> Path:
    """The directory of a run of 80 epochs, with a checkpoint after every 20, unless the fields say else."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        for asked, answer in answers.items()
    ]
    train = directory / "train.jsonl"
    train.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows))
    chosen: Fields = {
        "train_path": str(train),
        "valid_path": str(train),
        "task": "instruction_tuning",
        "num_epochs": 80,
        "num_warmup_steps": 0,
        "checkpoint_every_n_epochs": 20,
        "num_checkpoints_to_keep": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
    }
    job = prepare(spec_of(base, chosen | fields))
    run = RunDirectory.open(str(directory / "run"))
    run.claim(Manifest(metadata=Metadata(name="answers"), spec=job.spec).to_yaml(), "a test")
    train_here(TrainingJob("answers", Start(job.spec, "fp32", run.path, None), job))
    return directory / "run"
