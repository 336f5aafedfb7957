"""Which parts of a model text reaches, and in which direction: found on the model itself, before training."""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

_VOCABULARY, _WIDTH = 64, 64
_MOST_PARAMETERS = 100_000_000
"""A larger layer is not tried: it would take seconds."""

_SEEN, _UNSEEN = 4, 4
"""The first tokens, whose predictions are compared, and those after them, which change."""


def unreached(model: PreTrainedModel) -> list[str]:
    """The names of a multimodal model's parts that text never reaches, such as a vision tower.

    Everything beside the decoder, its embeddings and its head. The model may be on the meta device.
    """
    if model.config.get_text_config() is model.config:
        return []
    text = {
        id(part)
        for part in (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[no-untyped-call]
    }
    kept = [name for name, module in model.named_modules() if id(module) in text]
    return _beside(model, "", kept)


def freeze_unreached(model: PreTrainedModel) -> list[str]:
    """Freezes the parts that text never reaches, and returns their names."""
    names = unreached(model)
    for name in names:
        model.get_submodule(name).requires_grad_(False)
    return names


def _beside(module: torch.nn.Module, prefix: str, kept: list[str]) -> list[str]:
    names = []
    for child_name, child in module.named_children():
        name = f"{prefix}{child_name}"
        if name in kept or next(child.parameters(), None) is None:
            continue
        if any(each.startswith(f"{name}.") for each in kept):
            names += _beside(child, f"{name}.", kept)
        else:
            names.append(name)
    return names


@torch.no_grad()
def sees_later_tokens(model_class: type[AutoModelForCausalLM], config: PreTrainedConfig) -> bool:
    """Whether a position's prediction depends on the tokens after it, which are those it is to predict.

    Tried on one layer with random weights: do the first predictions change when later tokens do? False
    where a model of one layer cannot be made or is too large.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = _one_layer(model_class, config)
            if model is None:
                return False
            first = torch.arange(2, 2 + _SEEN + _UNSEEN)
            second = first.clone()
            second[_SEEN:] += _SEEN + _UNSEEN
            logits = model.eval()(  # type: ignore[no-untyped-call]
                input_ids=torch.stack([first, second]), use_cache=False
            ).logits
        except Exception:  # noqa: BLE001 - whatever an architecture needs that one layer has not
            return False
    change = (logits[0] - logits[1]).abs().amax(dim=-1)
    # Rounding changes the first ones by 1e-6 of what the others change.
    return bool(change[:_SEEN].max() > 1e-4 * change[_SEEN:].max())


def _one_layer(model_class: type[AutoModelForCausalLM], config: PreTrainedConfig) -> PreTrainedModel | None:
    small = copy.deepcopy(config)
    text = small.get_text_config()
    for each in (text, *(getattr(small, name) for name in small.sub_configs if getattr(small, name, None))):
        if hasattr(each, "num_hidden_layers"):
            each.num_hidden_layers = 1
        if hasattr(each, "intermediate_size"):
            each.intermediate_size = _WIDTH
        if "layer_types" in vars(each) and each.layer_types:
            each.layer_types = each.layer_types[:1]
    text.vocab_size, text.pad_token_id = _VOCABULARY, 0
    with torch.device("meta"):
        shape: PreTrainedModel = model_class.from_config(small, dtype=torch.float32, trust_remote_code=False)  # type: ignore[no-untyped-call]
    if sum(parameter.numel() for parameter in shape.parameters()) > _MOST_PARAMETERS:
        return None
    model: PreTrainedModel = model_class.from_config(small, dtype=torch.float32, trust_remote_code=False)  # type: ignore[no-untyped-call]
    return model
