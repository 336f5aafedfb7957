"""Chooses the implementation of attention."""

from __future__ import annotations

from importlib.util import find_spec

from finetune_api.spec import FineTuneJobSpec

NO_FLASH_ATTENTION = (
    "spec.flash_attention_2 needs a GPU and the package flash-attn; PyTorch's own attention is used"
)


def uses_flash_attention(spec: FineTuneJobSpec, *, on_gpu: bool) -> bool:
    """Whether flash-attn computes attention: it is asked for, there is a GPU, and it is installed.

    `on_gpu` says whether the workers have GPUs. The head of a Ray cluster has none, but it has the workers'
    image, and so gives the same answer as they do.
    """
    return bool(spec.flash_attention_2) and on_gpu and find_spec("flash_attn") is not None
