"""Validation: the mean loss over the tokens of the validation set that count, or over its pairs."""

from __future__ import annotations

import math

import torch

from finetune_trainer.data.batches import evaluation_batches
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.tasks.objective import Mean
from finetune_trainer.training.forward import Forward


@torch.no_grad()
def evaluate(forward: Forward, rows: TokenizedRows, batch_size: int) -> Mean:
    """The mean loss over all tokens of `rows` that count, or over its pairs, and the means of the metrics.

    They do not depend on the batch size or the number of devices, and every rank gets the same. All ranks
    must call this; they make the same number of forward passes. The model is in evaluation mode
    meanwhile, and in training mode afterwards.
    """
    parallel = forward.parallel
    forward.module.eval()
    total = torch.zeros((), dtype=torch.float64, device=parallel.device)
    metrics: dict[str, torch.Tensor] = {}
    for indices in evaluation_batches(
        rows.lengths, rank=parallel.rank, num_devices=parallel.num_devices, batch_size=batch_size
    ):
        loss = forward(rows, indices)
        total += loss.total
        for name, value in loss.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value.double()
    forward.module.train()
    weight = int(rows.weights.sum())
    loss_of_all, *sums = parallel.sum([total, *metrics.values()])
    return Mean(
        loss_of_all / weight, {name: value / weight for name, value in zip(metrics, sums, strict=True)}
    )


def perplexity(loss: float) -> float:
    """exp(loss), or infinity where that overflows."""
    return math.exp(loss) if loss < 709 else math.inf
