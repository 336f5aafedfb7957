"""The small model and the small rows that other tests run on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from make_tiny_model import make_tiny_model
from make_tiny_rows import make_tiny_rows


def _contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_weights(
    tiny_model: Path, tmp_path: Path
) -> None:
    again = _contents(make_tiny_model(tmp_path / "again"))
    other = _contents(make_tiny_model(tmp_path / "other", seed=1))

    assert again == _contents(tiny_model)
    assert {name for name in other if other[name] != again[name]} == {"model.safetensors"}


def test_making_a_model_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    make_tiny_model(tmp_path)

    assert torch.equal(torch.rand(3), expected)


def test_the_tokenizer_has_what_training_needs(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    conversation = [
        {"role": "user", "content": "What is a list?"},
        {"role": "assistant", "content": "Naïve ✓"},
    ]
    text = tokenizer.apply_chat_template(conversation, tokenize=False)

    assert (
        text == "<|begin_of_text|><|im_start|>user\nWhat is a list?<|im_end|>\n<|im_start|>assistant\nNaïve"
        " ✓<|im_end|>\n"
    )
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert tokenizer("list")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.model_max_length == 2048


@pytest.mark.parametrize("tied", [False, True])
def test_the_loaded_model_gives_logits_over_the_tokenizers_vocabulary(tied: bool, tmp_path: Path) -> None:
    directory = make_tiny_model(
        tmp_path, tie_word_embeddings=tied, vocab_size=512, max_position_embeddings=128
    )
    model = AutoModelForCausalLM.from_pretrained(directory)

    assert (
        model(torch.tensor([[0, 1, 2]])).logits.shape
        == (1, 3, len(AutoTokenizer.from_pretrained(directory)))
        == (1, 3, 512)
    )
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert model.config.max_position_embeddings == 128


def test_rows_are_chats_of_many_lengths_with_several_turns_and_system_messages(tiny_rows: Path) -> None:
    rows = [json.loads(line)["messages"] for line in tiny_rows.read_text(encoding="utf-8").splitlines()]
    words = [len(row[-1]["content"].split()) for row in rows]

    assert len(rows) == 24
    for row in rows:
        turns = [message["role"] for message in row if message["role"] != "system"]
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert all(message["content"].strip() for message in row)
    assert {len(row) for row in rows} >= {2, 3, 4}
    assert sum(row[0]["role"] == "system" for row in rows) == 6
    assert min(words) < 10
    assert max(words) > 40


def test_rows_depend_on_their_seed_alone(tmp_path: Path) -> None:
    first, again, other = (
        make_tiny_rows(tmp_path / f"{name}.jsonl", 8, seed) for name, seed in [("a", 3), ("b", 3), ("c", 4)]
    )

    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
