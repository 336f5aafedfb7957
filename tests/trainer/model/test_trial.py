from __future__ import annotations

import pytest
import torch
from tests.trainer.model.architectures import config_of
from transformers import AutoModelForCausalLM

from finetune_trainer.model.trial import Findings, findings
from finetune_trainer.tasks.head import Scores


def found(name: str) -> Findings:
    return findings(AutoModelForCausalLM, config_of(name))


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "mixtral", "gemma2", "gemma3", "gpt_oss"])
def test_rows_can_be_laid_end_to_end_where_attention_alone_moves_values(name: str) -> None:
    assert found(name).end_to_end


@pytest.mark.parametrize("name", ["linear attention", "convolutions", "alibi"])
def test_rows_stay_apart_where_something_else_does(name: str) -> None:
    assert not found(name).end_to_end


def test_rows_stay_apart_where_layers_of_some_kind_were_not_tried() -> None:
    # Every third layer has experts, and two layers are tried.
    config = config_of("mixed layers")
    assert not findings(AutoModelForCausalLM, config).end_to_end
    config.decoder_sparse_step = 1
    assert findings(AutoModelForCausalLM, config).end_to_end


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("llama", Scores()),
        ("gemma2", Scores(cap=3.0)),
        ("gemma3", Scores(cap=3.0)),
        ("granite", Scores(scale=0.25)),
        ("cohere", Scores(scale=0.25)),
    ],
)
def test_what_a_forward_pass_does_after_the_head_is_found(name: str, scores: Scores) -> None:
    assert found(name).scores == scores


def test_trying_leaves_the_random_state_as_it_was() -> None:
    config = config_of("llama")
    config.vocab_size += 1
    torch.manual_seed(3)
    before = torch.get_rng_state()
    findings(AutoModelForCausalLM, config)
    assert torch.equal(before, torch.get_rng_state())
