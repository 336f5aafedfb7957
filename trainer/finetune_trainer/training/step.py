"""The gradient of an optimizer step, normalised by all that counts in it."""

from __future__ import annotations

import torch

from finetune_trainer.data.batches import Indices, deal
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.tasks.objective import Mean
from finetune_trainer.training.forward import Forward


def backward(forward: Forward, train: TokenizedRows, rows: Indices, batch_size: int) -> Mean:
    """Gradients of one optimizer step over `rows`, and this device's part of its loss.

    The loss is the sum over the step's trained tokens on all devices and in all micro-batches, divided by
    their number: a mean of micro-batch means would weigh tokens by the company they keep. Their number is
    known to every device without an exchange. Gradients are complete on every device when this returns.
    """
    parallel = forward.parallel
    weight = int(train.predicted[rows].sum())
    micro_batches = deal(rows, rank=parallel.rank, num_devices=parallel.num_devices, batch_size=batch_size)
    total = torch.zeros((), device=parallel.device)
    metrics: dict[str, torch.Tensor] = {}
    for index, indices in enumerate(micro_batches):
        with parallel.accumulate(last=index == len(micro_batches) - 1):
            sums = forward(train, indices)
            loss = sums.total / weight
            parallel.backward(loss)
        total += loss.detach()
        for name, value in sums.metrics.items():
            metrics[name] = metrics.get(name, 0) + value.detach() / weight
    return Mean(float(total), {name: float(value) for name, value in metrics.items()})
