"""Validation: the mean loss over the trained tokens of the whole validation set."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.nn import functional

from finetune_api.numbers import ResolvedPrecision
from finetune_trainer.data.batches import MicroBatch, evaluation_batches, lay_out
from finetune_trainer.data.tokens import TokenizedRows


@dataclass(frozen=True)
class Share:
    """This worker's share of the work, and how its batches are laid out and computed."""

    rank: int
    num_devices: int
    device: torch.device
    dtype: ResolvedPrecision
    pad_token_id: int
    length: int | None
    """Tokens that every batch is padded to; None pads to the longest row."""


@contextmanager
def arithmetic(share: Share) -> Iterator[None]:
    """bf16 by autocast, or fp32 untouched."""
    with torch.autocast(share.device.type, dtype=torch.bfloat16, enabled=share.dtype == "bf16"):
        yield


def loss_sum(model: torch.nn.Module, batch: MicroBatch, device: torch.device) -> torch.Tensor:
    """The summed cross-entropy of a batch's trained tokens, a scalar in fp32; 0 when none counts.

    Position i is predicted from the positions before it, so the first token of a row never counts. The cache
    is switched off in every call: models turn it on by themselves outside training.
    """
    logits = model(
        input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False
    ).logits
    # logits are of shape (rows, length, vocabulary)
    counts = batch.trained[:, 1:].to(device)
    predicted = logits[:, :-1][counts].float()  # (trained tokens, vocabulary)
    labels = batch.input_ids[:, 1:].to(device)[counts]
    return functional.cross_entropy(predicted, labels, reduction="sum")


@torch.no_grad()
def mean_loss(model: torch.nn.Module, rows: TokenizedRows, batch_size: int, share: Share) -> float:
    """The mean loss over all trained tokens of `rows`, the same on every rank, for every batch size and number of devices.

    The model is put into evaluation mode and back.
    """
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)
    for indices in evaluation_batches(
        rows.lengths, rank=share.rank, num_devices=share.num_devices, batch_size=batch_size
    ):
        batch = lay_out(rows, indices, pad_token_id=share.pad_token_id, length=share.length)
        with arithmetic(share):
            total[0] += loss_sum(model, batch, share.device).double().cpu()
        total[1] += batch.trained[:, 1:].sum()
    model.train()
    if share.num_devices > 1:
        on_device = total.to(share.device)
        dist.all_reduce(on_device)
        total = on_device.cpu()
    return float(total[0] / total[1])


def perplexity(loss: float) -> float:
    """exp(loss); infinity where that overflows."""
    return math.exp(loss) if loss < 709 else math.inf
