"""Validation: the mean loss over all that counts in the validation set."""

from __future__ import annotations

import math

import torch

from finetune_trainer.data.batches import evaluation_batches
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.tasks.objective import Mean
from finetune_trainer.training.forward import Forward


@torch.no_grad()
def evaluate(forward: Forward, rows: TokenizedRows, batch_size: int) -> Mean:
    """The mean loss over all trained tokens of `rows`.

    It is the same on every rank, for every batch size and number of devices. All ranks call this, and make
    the same number of forward passes. The model is put into evaluation mode and back.
    """
    parallel = forward.parallel
    forward.module.eval()
    total = 0.0
    metrics: dict[str, float] = {}
    for indices in evaluation_batches(
        rows.lengths, rank=parallel.rank, num_devices=parallel.num_devices, batch_size=batch_size
    ):
        loss = forward(rows, indices)
        total += float(loss.total)
        for name, value in loss.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + float(value)
    forward.module.train()
    weight = int(rows.predicted.sum())
    total, *sums = parallel.sum([total, *metrics.values()])
    return Mean(total / weight, {name: value / weight for name, value in zip(metrics, sums, strict=True)})


def perplexity(loss: float) -> float:
    """exp(loss); infinity where that overflows."""
    return math.exp(loss) if loss < 709 else math.inf
