"""Computes the gradient of an optimizer step over all its micro-batches."""

from __future__ import annotations

import torch

from finetune_trainer.data.batches import Indices
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.tasks.objective import Loss
from finetune_trainer.training.forward import Forward


def backward(forward: Forward, train: TokenizedRows, rows: Indices, batch_size: int) -> Loss:
    """Computes the gradients of one optimizer step over `rows`, and returns this device's part of its loss.

    The loss of a step is the sum over all its tokens that count, or over its pairs of answers, on all devices
    and in all micro-batches, divided by their number. (A mean of micro-batch means would give tokens in small
    micro-batches more weight.) The parts of all devices add up to it, and so do those of the metrics. `rows`
    are the step's rows on all devices, so what they weigh needs no exchange. When this returns, gradients are
    complete on every device, or will be when it has done what it was given: nothing is waited for.
    """
    parallel = forward.parallel
    weight = int(train.weights[rows].sum())
    micro_batches = forward.layout.deal(
        train, rows, rank=parallel.rank, num_devices=parallel.num_devices, batch_size=batch_size
    )
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
    return Loss(total, metrics)
