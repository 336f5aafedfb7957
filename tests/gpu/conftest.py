"""Without a GPU the run ends at once with an error: tests that are skipped show nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
import torch.distributed as dist
from tests.trainer.model_directories import copy_of
from transformers import LlamaConfig, LlamaForCausalLM


def pytest_runtestloop(session: pytest.Session) -> None:
    if not session.config.option.collectonly and not torch.cuda.is_available():
        raise pytest.UsageError(
            "tests/gpu needs a GPU, and PyTorch sees none here (torch.cuda.is_available() is False)"
        )


@pytest.fixture(autouse=True)
def no_group_is_left() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture(scope="session")
def medium_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 130 million parameters that knows nothing, with the tiny model's tokenizer."""
    directory = copy_of(tiny_model, tmp_path_factory.mktemp("models") / "medium")
    config = LlamaConfig(
        vocab_size=16_384,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=2048,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def long_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 chat rows of about 2,500 tokens of the tiny model's tokenizer, nearly all of them an answer."""
    text = " ".join(topics.values())
    answers = [text[start : start + 8000] for start in range(0, 16 * 8000, 8000)]
    file = tmp_path_factory.mktemp("rows") / "long.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for answer in answers:
            turns = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": answer}]
            lines.write(json.dumps({"messages": turns}) + "\n")
    return file
