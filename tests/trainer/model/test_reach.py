"""Which parts of a model text reaches, and whether a position sees the tokens that it is to predict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.trainer.model_directories import copy_of
from tests.trainer.training_jobs import (
    FULL,
    LORA,
    Fields,
    column,
    job_of,
    spec_of,
    train_here,
    train_in_processes,
    trained_weights,
)
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.export.merge import merge
from finetune_trainer.model.load import load_config, load_model, shape
from finetune_trainer.model.reach import sees_later_tokens, unreached

Case = tuple[str, Fields]
"""A type of model, and its sizes."""

SIZES: Fields = {
    "vocab_size": 1100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GROUPED: Fields = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}
XLM: Fields = {"vocab_size": 1100, "emb_dim": 64, "n_layers": 2, "n_heads": 4}

SEES_LATER_TOKENS: dict[str, Case] = {
    "BERT": ("bert", SIZES),
    "RoBERTa": ("roberta", SIZES),
    "BigBird": ("big_bird", SIZES),
    "XLM": ("xlm", XLM),
    "XLNet": ("xlnet", {"vocab_size": 1100, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96}),
    "a Gemma 3 that embeds": ("gemma3_text", {**GROUPED, "use_bidirectional_attention": True}),
}
CAUSAL: dict[str, Case] = {
    "BERT as decoder": ("bert", {**SIZES, "is_decoder": True}),
    "RoBERTa as decoder": ("roberta", {**SIZES, "is_decoder": True}),
    "XLM, causal": ("xlm", {**XLM, "causal": True}),
    "Llama": ("llama", GROUPED),
    "Qwen 2": ("qwen2", {**SIZES, "num_key_value_heads": 2}),
    "Qwen 3, mixture of experts": (
        "qwen3_moe",
        {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "Mixtral": ("mixtral", {**SIZES, "num_key_value_heads": 2}),
    "Gemma 3": ("gemma3_text", GROUPED),
    "Phi 3": ("phi3", {**SIZES, "pad_token_id": 0}),
    "Falcon": ("falcon", {"vocab_size": 1100, "hidden_size": 64, "num_attention_heads": 4}),
    "GPT-2": ("gpt2", {"vocab_size": 1100, "n_embd": 64, "n_layer": 2, "n_head": 4}),
    "GPT-NeoX": ("gpt_neox", SIZES),
    "Bloom": ("bloom", {"vocab_size": 1100, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "OPT": ("opt", {**SIZES, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "Mamba": ("mamba", {"vocab_size": 1100, "hidden_size": 64, "num_hidden_layers": 2}),
}


def config_of(case: Case) -> PreTrainedConfig:
    name, fields = case
    config: PreTrainedConfig = AutoConfig.for_model(name, **fields)
    return config


@pytest.mark.parametrize("case", SEES_LATER_TOKENS.values(), ids=SEES_LATER_TOKENS)
def test_a_model_that_sees_the_tokens_it_is_to_predict_is_found(case: Case) -> None:
    assert sees_later_tokens(AutoModelForCausalLM, config_of(case))


@pytest.mark.parametrize("case", CAUSAL.values(), ids=CAUSAL)
def test_a_causal_model_is_not_mistaken_for_one(case: Case) -> None:
    assert not sees_later_tokens(AutoModelForCausalLM, config_of(case))


def test_the_probe_draws_no_random_numbers_of_the_run() -> None:
    torch.manual_seed(3)
    sees_later_tokens(AutoModelForCausalLM, config_of(CAUSAL["Llama"]))
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("BERT", "set is_decoder: true in its config.json, or give a causal language model"),
        ("XLNet", "give a causal language model"),
    ],
)
def test_it_is_refused_before_any_weight_is_read(
    tiny_model: Path, tmp_path: Path, name: str, cure: str
) -> None:
    model = copy_of(tiny_model, tmp_path / "model")
    config_of(SEES_LATER_TOKENS[name]).save_pretrained(model)
    spec = spec_of(model, FULL)
    with pytest.raises(FineTuneError) as raised:
        shape(spec, load_config(spec))
    assert raised.value.failure_class is FailureClass.MODEL_NOT_FOUND
    assert str(raised.value) == (
        f"spec.model_id: this {name.lower()} sees the tokens that it is to predict, and would only copy"
        f" them; {cure}"
    )


@pytest.fixture(scope="module")
def multimodal(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3 that takes images too."""
    model = copy_of(tiny_model, tmp_path_factory.mktemp("models") / "gemma3")
    (model / "model.safetensors").unlink()
    torch.manual_seed(0)
    vision: Fields = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    tokens: Fields = {"image_token_index": 1050, "boi_token_index": 1051, "eoi_token_index": 1052}
    fields: Fields = {"text_config": GROUPED, "vision_config": vision, "mm_tokens_per_image": 4, **tokens}
    made = AutoModelForCausalLM.from_config(config_of(("gemma3", fields)))  # type: ignore[no-untyped-call]
    made.save_pretrained(model)
    return model


def loaded(model: Path, way: Fields) -> PreTrainedModel | PeftModel:
    return load_model(spec_of(model, way), dtype="fp32", on_gpu=False)


def test_a_model_of_text_alone_is_reached_everywhere(tiny_model: Path) -> None:
    model = loaded(tiny_model, FULL)
    assert isinstance(model, PreTrainedModel)
    assert unreached(model) == []


EVERYWHERE = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
TARGETS: dict[str, tuple[Fields, set[str]]] = {
    "all-linear": ({}, EVERYWHERE),
    "all-linear but some": ({"exclude_modules": ["v_proj"]}, EVERYWHERE - {"v_proj"}),
    "names": ({"target_modules": ["q_proj", "v_proj"]}, {"q_proj", "v_proj"}),
    "an expression": (
        {"target_modules": ".*(q_proj|out_proj)", "exclude_modules": r".*layers\.0\..*"},
        {"q_proj"},
    ),
}


@pytest.mark.parametrize(("lora", "expected"), TARGETS.values(), ids=TARGETS)
def test_adapters_are_only_where_text_passes(multimodal: Path, lora: Fields, expected: set[str]) -> None:
    parameters = loaded(multimodal, {"lora_config": lora}).named_parameters()
    trained = [name for name, parameter in parameters if parameter.requires_grad]
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained} == expected
    assert not [name for name in trained if "vision_tower" in name or "multi_modal" in name]


def test_in_full_training_what_text_does_not_reach_stays_as_it_is(multimodal: Path, tmp_path: Path) -> None:
    train_here(job_of(multimodal, tmp_path / "run", FULL, num_epochs=1, learning_rate=1e-2, weight_decay=0.1))
    before, after = trained_weights(multimodal), trained_weights(tmp_path / "run/epoch-0")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "vision" not in name and "multi_modal" not in name}


@pytest.mark.parametrize("way", [LORA, FULL], ids=["lora", "full"])
def test_what_stays_is_said_and_not_counted_as_trained(multimodal: Path, way: Fields) -> None:
    spec = spec_of(multimodal, way)
    known = shape(spec, load_config(spec))
    trained = [each for each in loaded(multimodal, way).parameters() if each.requires_grad]

    assert known.trainable_parameters == sum(each.numel() for each in trained)
    parts = "vision_tower, multi_modal_projector"
    said = f"spec.model_id: text does not reach {parts}; they stay as they are, and get no adapters"
    assert said in known.warnings


@pytest.mark.parametrize("way", [LORA, FULL], ids=["lora", "full"])
def test_two_devices_train_it_as_one_does(multimodal: Path, tmp_path: Path, way: Fields) -> None:
    train_here(job_of(multimodal, tmp_path / "one", way, num_epochs=1))
    train_in_processes(
        job_of(multimodal, tmp_path / "two", way, num_epochs=1, num_devices=2, train_batch_size_per_device=2)
    )
    losses = [column(tmp_path / run, "loss") for run in ("one", "two")]
    assert len(losses[0]) > 1
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_its_adapter_says_what_is_left_out_and_merges(multimodal: Path, tmp_path: Path) -> None:
    train_here(job_of(multimodal, tmp_path / "run", LORA, num_epochs=1))
    config = json.loads((tmp_path / "run/epoch-0/adapter_config.json").read_text())
    assert config["exclude_modules"] == r"(?:model\.vision_tower|model\.multi_modal_projector)(?:\..*)?"
    merge(str(tmp_path / "run/epoch-0"), tmp_path / "merged")
    assert (tmp_path / "merged/model.safetensors").is_file()
