"""Estimates the memory that one device needs.

The allocator's overhead and temporary tensors come on top.
"""

from __future__ import annotations

from finetune_api.numbers import ResolvedPrecision
from finetune_api.status import StatusModel
from finetune_trainer.model.quantization import quantized_bytes
from finetune_trainer.plan.prepare import Prepared

_BYTES = {"bf16": 2, "fp32": 4}
_ACTIVATION_VALUES_PER_HIDDEN = 17
"""How many values a transformer layer keeps for the backward pass, per token and hidden unit.

Korthikanti et al. 2022, "Reducing Activation Recomputation", section 4.1: 34 bytes in 16 bits, without the
attention matrix, which PyTorch's attention does not keep."""


class MemoryEstimate(StatusModel):
    """The memory of one device, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    """AdamW's two moments."""
    activations: int
    """The values that the layers keep for the backward pass."""
    logits: int
    """The scores over the vocabulary, in the precision of the arithmetic and in fp32, and their gradients."""
    total: int


def estimate(prepared: Prepared, dtype: ResolvedPrecision) -> MemoryEstimate:
    """Estimates the memory of a training step on one device.

    All rows of the micro-batch are taken to be as long as the longest row, or as the context length when rows
    are padded to it.
    """
    shape = prepared.shape
    value = _BYTES[dtype]
    frozen = shape.total_parameters - shape.trainable_parameters
    # Trained weights are held in fp32; see finetune_trainer.model.load.load_model.
    quantized = shape.quantized_parameters
    weights = (frozen - quantized) * value + quantized_bytes(quantized) + shape.trainable_parameters * 4

    longest = (
        prepared.numbers.context_length
        if prepared.spec.padding == "max_length"
        else min(prepared.numbers.context_length, prepared.train.longest)
    )
    tokens = prepared.numbers.train_batch_size_per_device * longest
    of_layer = tokens * shape.hidden_size * _ACTIVATION_VALUES_PER_HIDDEN * value
    inputs = tokens * shape.hidden_size * value * shape.layers
    activations = inputs + of_layer if prepared.spec.recomputes_activations else shape.layers * of_layer

    gradients = shape.trainable_parameters * 4
    optimizer = shape.trainable_parameters * 8
    logits = tokens * shape.vocabulary * (2 * value + 8)
    return MemoryEstimate(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        total=weights + gradients + optimizer + activations + logits,
    )
