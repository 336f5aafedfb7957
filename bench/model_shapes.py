"""Models of published sizes, as configurations from which they are planned or made with random weights."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue
from transformers import AutoConfig, PreTrainedConfig

from make_tiny_model import make_tokenizer

Fields = dict[str, JsonValue]

_LLAMA_2: Fields = {"model_type": "llama", "vocab_size": 32_000, "max_position_embeddings": 4096}
_LLAMA_3: Fields = {"model_type": "llama", "vocab_size": 128_256, "max_position_embeddings": 8192}

SIZES: dict[str, Fields] = {
    "llama-2-7b": {**_LLAMA_2, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32},
    "llama-2-13b": {
        **_LLAMA_2,
        "hidden_size": 5120,
        "intermediate_size": 13_824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
    "llama-2-70b": {
        **_LLAMA_2,
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "llama-3-8b": {
        **_LLAMA_3,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
    },
    "llama-3-70b": {
        **_LLAMA_3,
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "llama-3.2-1b": {
        **_LLAMA_3,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "mistral-7b": {
        "model_type": "mistral",
        "vocab_size": 32_000,
        "max_position_embeddings": 32_768,
        "sliding_window": 4096,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
    },
    "mixtral-8x7b": {
        "model_type": "mixtral",
        "vocab_size": 32_000,
        "max_position_embeddings": 32_768,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
    },
    "small llama": {
        **_LLAMA_3,
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
}
"""The published config.json of each, in the fields that decide its size; `small llama` is for trying."""


def config_of(name: str, **fields: JsonValue) -> PreTrainedConfig:
    """The configuration of a model, with some fields changed."""
    sizes: Fields = {"num_attention_heads": 32, **SIZES[name], **fields}
    config: PreTrainedConfig = AutoConfig.for_model(str(sizes.pop("model_type")), **sizes)
    return config


def write_description(name: str, directory: Path, **fields: JsonValue) -> Path:
    """Writes configuration and a tokenizer, but no weights; returns the directory."""
    config_of(name, **fields).save_pretrained(directory)
    # It makes few different tokens, which any vocabulary holds.
    make_tokenizer(1024, 2**20).save_pretrained(directory)
    return directory
