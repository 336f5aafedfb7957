"""What an architecture allows, tried on a small model of its kind with random weights.

Rows can be laid end to end where nothing but attention moves values between positions, and where positions
are taken as they are given: no convolution, no linear attention. The loss can be computed a chunk of
positions at a time where what a forward pass does after the decoder is known.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from finetune_trainer.data.layout import EndToEnd
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.model.attention import WITHIN_ROWS
from finetune_trainer.model.remarks import transformers_remarks
from finetune_trainer.tasks.head import Scores

_VOCABULARY, _WIDTH = 64, 64
_LENGTHS = (7, 4, 6)
"""The rows that are laid end to end."""
_WINDOW = 3
"""Tokens that a sliding window sees: fewer than rows have."""
_MOST_PARAMETERS = 100_000_000
"""A larger model is not tried: it would take seconds."""
_SCORE = 10.0
"""How large scores are made, so that it is seen when they are bounded or scaled."""
_ROUNDING = 1e-4
"""What differs by less, as a part of the largest, is the same."""
_log = logging.getLogger(__name__)
_found: dict[str, Findings] = {}


@dataclass(frozen=True)
class Findings:
    """What was found."""

    end_to_end: bool
    """Whether rows can be laid end to end."""
    scores: Scores | None
    """What the forward pass does after decoder and head; None where that is not known."""


NOTHING = Findings(end_to_end=False, scores=None)
"""Of an architecture that cannot be tried."""


def findings(model_class: type[AutoModelForCausalLM], config: PreTrainedConfig) -> Findings:
    """Tries an architecture; it takes a part of a second, once in a process."""
    key = f"{model_class.__name__} {config.to_json_string(use_diff=False)}"
    if key not in _found:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), transformers_remarks("", []):
            torch.manual_seed(0)
            _found[key] = _tried(model_class, config)
    return _found[key]


def _tried(model_class: type[AutoModelForCausalLM], config: PreTrainedConfig) -> Findings:
    for narrow in (True, False):
        try:
            model = _small_model(model_class, _small(config, narrow=narrow))
            if model is not None:
                scores, end_to_end = _found_on(model, config)
                return Findings(end_to_end and _has_each_kind(model, model_class, config), scores)
        except Exception as error:  # noqa: BLE001 - whatever an architecture needs that a small model has not
            _log.info("a small %s could not be tried", config.model_type, exc_info=error)
    return NOTHING


def _found_on(model: PreTrainedModel, config: PreTrainedConfig) -> tuple[Scores | None, bool]:
    """What the forward pass does after decoder and head, and whether rows end to end change nothing."""
    decoder = cast("torch.nn.Module", model.get_decoder())  # type: ignore[no-untyped-call]
    head = cast("torch.nn.Module", model.get_output_embeddings())  # type: ignore[no-untyped-call]
    rows = _rows()
    model.set_attn_implementation("eager")

    def alone(module: torch.nn.Module, name: str) -> torch.Tensor:
        each = [torch.from_numpy(rows.row(index)[0].astype(np.int64)) for index in range(len(rows))]
        return torch.cat([module(input_ids=ids[None], use_cache=False)[name][0] for ids in each])

    head.get_parameter("weight").mul_(_SCORE / alone(model, "logits").std())
    expected = alone(model, "logits")
    hidden = alone(decoder, "last_hidden_state")
    known = (each for each in _possible_scores(config) if _same(each.of(head, hidden), expected))
    scores = next(known, None)

    model.set_attn_implementation(WITHIN_ROWS)
    inputs = EndToEnd(0).batch(rows, range(len(rows))).inputs
    try:
        if scores is None:
            together = model(**inputs, use_cache=False)["logits"][0]
        else:
            together = scores.of(head, decoder(**inputs, use_cache=False)["last_hidden_state"][0])
    except Exception as error:  # noqa: BLE001 - as above
        _log.info("rows of %s cannot be laid end to end", config.model_type, exc_info=error)
        return scores, False
    return scores, _same(together, expected)


def _has_each_kind(
    small: PreTrainedModel, model_class: type[AutoModelForCausalLM], config: PreTrainedConfig
) -> bool:
    """Whether the small model has a module of each class that the model has."""
    with torch.device("meta"):
        whole: PreTrainedModel = model_class.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    return _kinds(whole) <= _kinds(small)


def _possible_scores(config: PreTrainedConfig) -> Iterator[Scores]:
    """What models with these fields do with the scores, of all that transformers has."""
    text = config.get_text_config()
    cap = getattr(text, "final_logit_softcapping", None)
    yield Scores(getattr(text, "logit_scale", None) or 1.0, cap)  # Cohere, Gemma
    if scaling := getattr(text, "logits_scaling", None):
        yield Scores(1 / scaling, cap)  # Granite
        yield Scores(scaling, cap)  # HyperCLOVA


def _small_model(model_class: type[AutoModelForCausalLM], small: PreTrainedConfig) -> PreTrainedModel | None:
    """The model with random weights; None where it is too large."""
    with torch.device("meta"):
        shape: PreTrainedModel = model_class.from_config(  # type: ignore[no-untyped-call]
            copy.deepcopy(small), dtype=torch.float32, trust_remote_code=False
        )
    if sum(parameter.numel() for parameter in shape.parameters()) > _MOST_PARAMETERS:
        return None
    model: PreTrainedModel = model_class.from_config(small, dtype=torch.float32, trust_remote_code=False)  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        if parameter.ndim > 1:  # attention of weights as they begin is nearly the same to all tokens
            parameter.mul_(5)
    return cast("PreTrainedModel", model.eval())  # type: ignore[no-untyped-call]


def _small(config: PreTrainedConfig, *, narrow: bool) -> PreTrainedConfig:
    """A configuration with a layer of each kind, whose rows are longer than its windows."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    kinds = list(dict.fromkeys(getattr(text, "layer_types", None) or ()))
    for each in (text, *(getattr(small, name) for name in small.sub_configs if getattr(small, name, None))):
        for name in ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"):
            if isinstance(getattr(each, name, None), int):
                setattr(each, name, _WIDTH)
        for name, few in (("num_hidden_layers", 2), ("first_k_dense_replace", 1), ("n_routed_experts", 16)):
            if isinstance(getattr(each, name, None), int):
                setattr(each, name, min(getattr(each, name), few))
    if kinds:
        text.layer_types = kinds if len(kinds) > 1 else kinds * min(2, text.num_hidden_layers)
        text.num_hidden_layers = len(text.layer_types)
    if narrow:
        own = any(getattr(text, name, None) for name in ("head_dim", "qk_nope_head_dim"))
        text.hidden_size = _WIDTH if own else 8 * text.num_attention_heads
    for name in ("sliding_window", "attention_chunk_size"):
        if getattr(text, name, None):
            setattr(text, name, _WINDOW)
    if getattr(text, "attn_logit_softcapping", None):
        text.attn_logit_softcapping = 1.0
    text.vocab_size, text.pad_token_id = _VOCABULARY, 0
    return small


def _rows() -> TokenizedRows:
    ends = np.cumsum([0, *_LENGTHS])
    random = np.random.default_rng(0)
    return TokenizedRows(
        input_ids=random.integers(1, _VOCABULARY, ends[-1]).astype(np.int32),
        trained=np.ones(ends[-1], dtype=np.bool_),
        offsets=ends.astype(np.int64),
        lines=np.arange(1, len(_LENGTHS) + 1),
    )


def _kinds(model: PreTrainedModel) -> set[str]:
    decoder = cast("torch.nn.Module", model.get_decoder())  # type: ignore[no-untyped-call]
    return {type(module).__name__ for module in decoder.modules()}


def _same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    return bool((found - expected).abs().max() <= _ROUNDING * expected.abs().max())
