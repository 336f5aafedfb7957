"""A classifier of real text: what a sentence of the standard library's documentation is about."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from transformers import pipeline

from finetune_api.manifest import read_manifest
from finetune_api.status import ProgressRecord
from finetune_trainer.export.merge import merge
from finetune_trainer.local import run_locally
from finetune_trainer.plan.prepare import Prepared
from make_stdlib_topics import LABELS, topic_rows

pytestmark = pytest.mark.timeout(3600)

ROWS = topic_rows()
VALIDATION, TRAIN = ROWS[:60], ROWS[60:300]


class Silent:
    """Somebody whom nothing is told."""

    def say(self, _: str) -> None:
        """Does nothing."""

    def prepared(self, _: Prepared) -> None:
        """Does nothing."""

    def progress(self, _: ProgressRecord) -> None:
        """Does nothing."""


def test_it_beats_the_commonest_label_by_far_and_answers_the_same_in_plain_transformers(
    smollm2: Path, tmp_path: Path
) -> None:
    for name, rows in (("train", TRAIN), ("validation", VALIDATION)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    spec = {
        "model_id": str(smollm2),
        "train_path": str(tmp_path / "train.jsonl"),
        "valid_path": str(tmp_path / "validation.jsonl"),
        "classifier_config": {"label_tokens": [*LABELS]},
        "lora_config": {"r": 8},
        "learning_rate": 1e-3,
        "num_warmup_steps": 5,
        "num_epochs": 1,
        "train_batch_size_per_device": 8,
    }
    job = tmp_path / "classifier.yaml"
    job.write_text(yaml.safe_dump(spec))

    ended = run_locally(read_manifest(job), storage=str(tmp_path / "runs"), devices=None, observer=Silent())

    truth = [str(row["messages"][-1]["content"]) for row in VALIDATION]
    commonest = Counter(truth).most_common(1)[0][1] / len(truth)
    assert ended.status.evaluation is not None
    accuracy = ended.status.evaluation.metrics["accuracy"]
    assert accuracy > 3 * commonest
    assert ended.status.model_path is not None
    merge(ended.status.model_path, tmp_path / "merged")
    answers = answers_of(tmp_path / "merged", [str(row["messages"][0]["content"]) for row in VALIDATION])
    assert set(answers) <= set(LABELS)
    right = sum(said == wanted for said, wanted in zip(answers, truth, strict=True))
    assert right / len(truth) == pytest.approx(accuracy, abs=1e-6)


def answers_of(directory: Path, questions: list[str]) -> list[str]:
    """What the model in the directory says by a plain pipeline of transformers."""
    says = pipeline("text-generation", model=str(directory), dtype=torch.float32)
    answers = []
    for question in questions:
        [said] = says([{"role": "user", "content": question}])
        answers.append(str(said["generated_text"][-1]["content"]))
    return answers
