"""A small Llama with random weights, and a job that trains a LoRA on it with rows of mixed length."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from pydantic import JsonValue
from transformers import LlamaConfig

from make_tiny_model import make_llama

VOCABULARY, CONTEXT = 4096, 512
BATCH_SIZE = 8
Fields = dict[str, JsonValue]


def make_small_llama(directory: Path) -> Path:
    """Writes a Llama of 4 layers, 256 hidden units and 4,096 tokens, and returns its directory."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
    )
    return make_llama(directory, config)


def write_rows(file: Path, count: int, characters: int | None = None) -> Path:
    """Writes rows of Python's documentation, always the same: of 20 to 2,000 characters, or of so many."""
    texts = list(topics.values())
    lengths = torch.randint(20, 2000, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    if characters is not None:
        lengths = [characters] * count
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Page {number}"},
                {"role": "assistant", "content": (texts[number % len(texts)] * 20)[:length]},
            ]
        }
        for number, length in enumerate(lengths)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def step_lines(metrics: Path) -> list[dict[str, Any]]:
    """The lines of optimizer steps in a run's metrics.jsonl."""
    lines = map(json.loads, metrics.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if "loss" in line]


def write_job(directory: Path, fields: Fields, *, steps: int, epochs: int = 1) -> Path:
    """Makes model, rows and job for so many steps an epoch, and returns the job's file.

    `fields` of the spec replace those of a LoRA; one that is None is left out.
    """
    directory.mkdir(exist_ok=True)
    spec: Fields = {
        "model_id": str(make_small_llama(directory / "model")),
        "train_path": str(write_rows(directory / "rows.jsonl", steps * BATCH_SIZE)),
        "task": "instruction_tuning",
        "lora_config": {"r": 8, "lora_alpha": 16},
        "dtype": "fp32",
        "seed": 0,
        "learning_rate": 3e-4,
        "num_warmup_steps": 0,
        "num_epochs": epochs,
        "context_length": CONTEXT,
        "train_batch_size_per_device": BATCH_SIZE,
        "gradient_checkpointing": False,
    }
    given = {name: value for name, value in (spec | fields).items() if value is not None}
    job = directory / "job.yaml"
    job.write_text(json.dumps(given, indent=2), encoding="utf-8")  # JSON is YAML
    return job
