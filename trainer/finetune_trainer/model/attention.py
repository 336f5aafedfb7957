"""Attention: which implementation computes it, and one for rows that are laid end to end."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import cast

import torch
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from finetune_api.spec import FineTuneJobSpec

NO_FLASH_ATTENTION = (
    "spec.flash_attention_2 needs a GPU and the package flash-attn; PyTorch's own attention is used"
)

WITHIN_ROWS = "finetune-within-rows"
"""The name of `within_rows` for transformers, which makes no mask for a name that it does not know."""

FLASH_ATTENTION = "flash_attention_2"
"""That of the package flash-attn, which keeps to the bounds of rows itself."""

_WIDEST_HEAD = 256
"""Of those that flash attention computes."""


def uses_flash_attention(spec: FineTuneJobSpec, *, on_gpu: bool) -> bool:
    """Whether flash-attn computes attention: it is asked for, there is a GPU, and it is installed.

    `on_gpu` says whether the workers have GPUs. The head of a Ray cluster has none, but it has the workers'
    image, and so gives the same answer as they do.
    """
    return bool(spec.flash_attention_2) and on_gpu and find_spec("flash_attn") is not None


def within_rows(
    _module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None = None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **_arguments: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each token to those before it in its row, as transformers calls it.

    query, key and value are of shape (1, heads, tokens, size), the result is (1, tokens, heads, size).
    `cu_seq_lens_q` says where rows end, see `finetune_trainer.data.layout.Bounds`. `sliding_window` is the
    number of tokens that one sees, itself included; `softcap` bounds the scores, and `s_aux` are those of
    attending to nothing, one for each head.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        raise ValueError("attention within rows needs the bounds of the rows")
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        query, key, value = (each.to(torch.get_autocast_dtype(kind)) for each in (query, key, value))
    windowed = sliding_window is not None and sliding_window < max_length_q
    window = sliding_window if windowed else None
    plain = softcap is None and s_aux is None
    if plain and window is None and len(cu_seq_lens_q) == 2:
        # For which PyTorch has its fastest kernels.
        return _of_one_length(query, key, value, None, dropout, scaling), None
    if plain and not dropout and _has_kernel(query, value):
        return _by_kernel(query, key, value, cu_seq_lens_q, max_length_q, scaling, window), None
    return _row_by_row(query, key, value, cu_seq_lens_q, dropout, scaling, window, softcap, s_aux), None


AttentionInterface.register(WITHIN_ROWS, within_rows)


def attend_within_rows(model: PreTrainedModel) -> None:
    """Makes the model ready for rows that are laid end to end."""
    if model.config._attn_implementation == FLASH_ATTENTION:
        return
    _attend_by(model, WITHIN_ROWS)


@contextmanager
def attending_as_loaded(model: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Inside the block attention is by `implementation`, the model's when it was loaded, which knows caches.

    What computes it within rows needs their bounds, and generation has none.
    """
    if model.config._attn_implementation != WITHIN_ROWS:
        yield
        return
    _attend_by(model, implementation)
    try:
        yield
    finally:
        _attend_by(model, WITHIN_ROWS)


def _attend_by(model: PreTrainedModel, implementation: str) -> None:
    model.set_attn_implementation(implementation)
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):  # of its own, in layers that PEFT has replicated
            config._attn_implementation = implementation


def _has_kernel(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether PyTorch's kernel for rows of various lengths computes these."""
    size = query.shape[-1]
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and size == value.shape[-1]
        and size <= _WIDEST_HEAD
        and size % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    attend = varlen_attn
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            attend = partial(varlen_attn, enable_gqa=True)
        else:  # PyTorch 2.11
            groups = query.shape[1] // key.shape[1]
            key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    query, key, value = (each[0].transpose(0, 1) for each in (query, key, value))
    # The window of the kernel does not count the token itself.
    before = -1 if window is None else window - 1
    out = attend(query, key, value, ends, ends, longest, longest, scale=scaling, window_size=(before, 0))
    return cast("torch.Tensor", out)[None]


def _of_one_length(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """PyTorch's own attention within rows of one length, causal or under a mask.

    query, key and value are of shape (rows, heads, tokens, size), the result is (rows, tokens, heads, size).
    """
    if query.device.type == "cuda" and query.dtype == torch.float32:
        # Where heads share a key and a value PyTorch would make the matrix of scores.
        key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (key, value))
    out = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _row_by_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    lengths = ends.diff().tolist()
    plain = softcap is None and sinks is None
    masks: dict[int, torch.Tensor] = {}

    def attend(of_query: torch.Tensor, of_key: torch.Tensor, of_value: torch.Tensor) -> torch.Tensor:
        """Of rows of one length, side by side in the first dimension."""
        length = of_query.shape[2]
        if length not in masks and window is not None and window < length:
            masks[length] = _banded(length, window, query.device)
        mask = masks.get(length)
        if plain:
            return _of_one_length(of_query, of_key, of_value, mask, dropout, scaling)
        mask = _banded(length, length, query.device) if mask is None else mask
        scored = _by_scores(of_query, of_key, of_value, mask, dropout, scaling, softcap, sinks)
        return scored.transpose(1, 2)

    # Not where scores are written out: they take their memory a row at a time.
    if plain and len(set(lengths)) == 1:
        shape = (len(lengths), lengths[0], -1)
        stacked = (each[0].view(len(each[0]), *shape).transpose(0, 1) for each in (query, key, value))
        return attend(*stacked).flatten(0, 1)[None]
    # The gradient of a slice is as large as what it was cut from, that of all parts of a split together.
    rows = zip(*(torch.split(each, lengths, dim=2) for each in (query, key, value)), strict=True)
    return torch.cat([attend(*row) for row in rows], dim=1)


def _banded(length: int, window: int, device: torch.device) -> torch.Tensor:
    """True where a token sees another: the `window` ones up to itself. Shape (length, length)."""
    every = torch.ones(length, length, dtype=torch.bool, device=device)
    return every.tril().triu(1 - window)


def _by_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention written out, for what PyTorch's does not have."""
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.float().masked_fill(~mask, -torch.inf)
    if sinks is not None:
        nothing = sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, nothing], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    weights = functional.dropout(weights.to(query.dtype), dropout)
    return weights @ value
