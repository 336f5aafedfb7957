"""Which rows an optimizer step trains on, which device gets which of them, and how a micro-batch is laid out.

The rows of a step depend on the seed and the effective batch size alone, never on the number of devices or on
gradient accumulation: that is why 1 worker, n workers and any accumulation train the same model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from finetune_trainer.data.tokens import TokenizedRows

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass, padded on the right to one length; shapes (rows, length)."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    """1 on tokens, 0 on padding."""
    trained: torch.Tensor
    """True on tokens that count in the loss, as labels: position i is predicted from i - 1."""


def row_order(seed: int, epoch: int, rows: int) -> Indices:
    """The order of the rows in an epoch (0-based): a permutation that the seed and the epoch alone decide."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def step_rows(order: Indices, step_in_epoch: int, effective_batch_size: int) -> Indices:
    """Rows of the optimizer step with this 0-based index in its epoch; the last step of an epoch may have fewer."""
    return order[step_in_epoch * effective_batch_size : (step_in_epoch + 1) * effective_batch_size]


def deal(rows: Indices, *, rank: int, num_devices: int, batch_size: int) -> list[Indices]:
    """The micro-batches of one device in a step.

    Every device gets the same number of micro-batches, since gradients are reduced together; when rows run
    out, some micro-batches of a step are smaller or empty.
    """
    stride = num_devices * batch_size
    return [rows[start : start + stride][rank::num_devices] for start in range(0, len(rows), stride)]


def lay_out(
    rows: TokenizedRows, indices: Sequence[int] | Indices, *, pad_token_id: int, length: int | None = None
) -> MicroBatch:
    """The micro-batch of these rows, padded to `length` or to the longest of them.

    Without rows it is one token that does not count: the device still takes part in the step, with a loss of
    zero.
    """
    picked = [rows.row(int(index)) for index in indices]
    width = length or max((len(ids) for ids, _ in picked), default=1)
    shape = (max(1, len(picked)), width)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    trained = torch.zeros(shape, dtype=torch.bool)
    if not picked:
        attention_mask[:, 0] = 1
    for position, (ids, counts) in enumerate(picked):
        input_ids[position, : len(ids)] = torch.from_numpy(np.asarray(ids, dtype=np.int64))
        attention_mask[position, : len(ids)] = 1
        trained[position, : len(ids)] = torch.from_numpy(np.array(counts))
    return MicroBatch(input_ids, attention_mask, trained)


def evaluation_batches(
    lengths: NDArray[np.int64], *, rank: int, num_devices: int, batch_size: int
) -> list[Indices]:
    """One device's batches of a validation set, rows of like length together so that little is padded; every row once."""
    mine = np.argsort(-lengths, kind="stable")[rank::num_devices]
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
