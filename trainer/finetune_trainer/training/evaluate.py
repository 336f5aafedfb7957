"""Validation: the mean loss over the tokens of the validation set that count, or over its pairs or rows."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from finetune_trainer.data.batches import Indices, evaluation_batches
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.parallel.parallel import Parallel
from finetune_trainer.tasks.objective import Judge, Loss, Mean
from finetune_trainer.training.forward import Forward

Found = tuple[Indices, NDArray[np.float32]]
"""Documents, and what was found for each."""


@torch.no_grad()
def evaluate(forward: Forward, rows: TokenizedRows, batch_size: int, judge: Judge | None = None) -> Mean:
    """The mean loss over all tokens of `rows` that count, or over its pairs, and the metrics.

    These are means, and what `judge` says of all documents.

    They do not depend on the batch size or the number of devices, and every rank gets the same. All ranks
    must call this; they make the same number of forward passes. The model is in evaluation mode
    meanwhile, and in training mode afterwards.
    """
    parallel = forward.parallel
    forward.module.eval()
    total = torch.zeros((), dtype=torch.float64, device=parallel.device)
    metrics: dict[str, torch.Tensor] = {}
    found: list[Found] = []
    for indices in evaluation_batches(
        rows.lengths, rank=parallel.rank, num_devices=parallel.num_devices, batch_size=batch_size
    ):
        loss = forward(rows, indices)
        if judge is not None:
            found.append(found_for(rows, indices, loss))
        total += loss.total
        for name, value in loss.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value.double()
    forward.module.train()
    weight = int(rows.weights.sum())
    loss_of_all, *sums = parallel.sum([total, *metrics.values()])
    means = {name: value / weight for name, value in zip(metrics, sums, strict=True)}
    if judge is not None:
        means |= judge(rows, of_all_documents(parallel, found))
    return Mean(loss_of_all / weight, means)


def found_for(rows: TokenizedRows, indices: Indices, loss: Loss) -> Found:
    """What a forward pass has found for the documents of some rows."""
    assert loss.documents is not None
    return rows.laid_out(indices)[1], loss.documents.float().cpu().numpy()


def of_all_documents(parallel: Parallel, found: list[Found]) -> NDArray[np.float32]:
    """What all ranks have found, in the order of the documents. All ranks must call this."""
    parts = [part for of_rank in parallel.gather(found) for part in of_rank]
    documents = np.concatenate([indices for indices, _ in parts])
    values = np.concatenate([values for _, values in parts])
    ordered = np.empty_like(values)
    ordered[documents] = values
    return ordered


def perplexity(loss: float) -> float:
    """exp(loss), or infinity where that overflows."""
    return math.exp(loss) if loss < 709 else math.inf
