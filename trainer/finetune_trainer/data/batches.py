"""Which rows an optimizer step trains on, and which device gets which of them.

The rows of a step depend on the seed and the effective batch size alone, never on the number of devices or
on gradient accumulation: that is why 1 worker, n workers and any accumulation train the same model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


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


def evaluation_batches(
    lengths: NDArray[np.int64], *, rank: int, num_devices: int, batch_size: int
) -> list[Indices]:
    """One device's batches of a validation set; every row is in one batch of one device.

    Rows of like length come together, so that little is padded. Every device gets the same number of batches,
    since each forward pass may be one that all devices take part in; the last may be empty.
    """
    order = np.argsort(-lengths, kind="stable")
    longest_share = -(-len(order) // num_devices)
    mine = order[rank::num_devices]
    return [mine[start : start + batch_size] for start in range(0, longest_share, batch_size)]
