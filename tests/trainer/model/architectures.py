"""Models of various architectures with random weights, small and uneven enough to tell mistakes."""

from __future__ import annotations

import torch
from pydantic import JsonValue
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

Fields = dict[str, JsonValue]

WINDOW = 5
"""Tokens that a sliding window sees: fewer than most rows have."""

_COMMON: Fields = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ALTERNATING: Fields = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
_EXPERTS: Fields = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
_LINEAR: Fields = {
    **_EXPERTS,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

CONFIGS: dict[str, tuple[str, Fields]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "mixtral": ("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 2}),
    "gemma2": ("gemma2", {**_ALTERNATING, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3_text", {**_ALTERNATING, "final_logit_softcapping": 3.0}),
    "granite": ("granite", {"logits_scaling": 4.0}),
    "cohere": ("cohere", {"logit_scale": 0.25}),
    "gpt_oss": ("gpt_oss", {**_ALTERNATING, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "linear attention": ("qwen3_next", _LINEAR),
    "convolutions": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "mixed layers": ("qwen2_moe", {**_EXPERTS, "num_hidden_layers": 3, "decoder_sparse_step": 3}),
    "alibi": ("bloom", {"n_head": 4, "n_layer": 2}),
}


def config_of(name: str) -> PreTrainedConfig:
    kind, fields = CONFIGS[name]
    config: PreTrainedConfig = AutoConfig.for_model(kind, **(_COMMON | fields))
    return config


def model_of(name: str, attention: str) -> PreTrainedModel:
    """The model in training mode; the same weights each time."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config_of(name), dtype=torch.float32, attn_implementation=attention
    )
    for parameter in model.parameters():
        # Weights as they begin attend to all tokens alike.
        if parameter.ndim > 1:
            parameter.data.mul_(8)
    model.train()
    return model
