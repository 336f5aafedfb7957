"""Which implementation of attention a model gets."""

from __future__ import annotations

from importlib.util import find_spec

from finetune_api.spec import FineTuneJobSpec

NO_FLASH_ATTENTION = (
    "spec.flash_attention_2 needs a GPU and the package flash-attn; PyTorch's own attention is used"
)


def uses_flash_attention(spec: FineTuneJobSpec, *, on_gpu: bool) -> bool:
    """Whether attention comes from the flash-attn package: asked for, on a GPU, and installed.

    The head of a cluster has no GPU, but the image of its workers: it comes to the same answer as they do.
    """
    return bool(spec.flash_attention_2) and on_gpu and find_spec("flash_attn") is not None
