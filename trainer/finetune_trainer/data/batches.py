"""Decides which rows each optimizer step trains on, and which device gets which of them.

The rows of a step depend only on the seed and the effective batch size, not on the number of devices or on
gradient accumulation. So 1 worker, n workers and any accumulation train the same model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def row_order(seed: int, epoch: int, rows: int) -> Indices:
    """The order of the rows in an epoch (0-based): a permutation that depends only on seed and epoch."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def step_rows(order: Indices, step_in_epoch: int, effective_batch_size: int) -> Indices:
    """The rows of one optimizer step, by its 0-based index in the epoch. The last step may have fewer."""
    return order[step_in_epoch * effective_batch_size : (step_in_epoch + 1) * effective_batch_size]


def deal(rows: Indices, *, rank: int, num_devices: int, batch_size: int) -> list[Indices]:
    """Deals the rows of a step out to the devices, and returns the micro-batches of one of them.

    Every device gets the same number of micro-batches, because all take part in every exchange of gradients.
    When there are too few rows, some micro-batches are smaller or empty.
    """
    stride = num_devices * batch_size
    return [rows[start : start + stride][rank::num_devices] for start in range(0, len(rows), stride)]


def deal_evenly(
    rows: Indices, tokens: NDArray[np.int64], *, rank: int, num_devices: int, batch_size: int
) -> list[Indices]:
    """The same as `deal`, with about as many tokens in each micro-batch; `tokens` are those of each row.

    Devices wait for the one that has most to do. The longest rows are dealt first, to and fro.
    """
    count = -(-len(rows) // (num_devices * batch_size))
    place = np.empty(len(rows), dtype=np.int64)
    place[np.argsort(-tokens, kind="stable")] = to_and_fro(len(rows), count * num_devices)
    return [rows[place == index * num_devices + rank] for index in range(count)]


def to_and_fro(items: int, places: int) -> Indices:
    """The place of each item: 0, 1, 2, 2, 1, 0, 0, 1 for eight items and three places."""
    turn, place = np.divmod(np.arange(items), max(1, places))
    return np.where(turn % 2, places - 1 - place, place)


def evaluation_batches(
    lengths: NDArray[np.int64], *, rank: int, num_devices: int, batch_size: int
) -> list[Indices]:
    """The batches of one device in a validation. Every row is in exactly one batch of one device.

    Rows of similar length share a batch, so that there is little padding. Every device gets the same
    number of batches, because all devices may have to take part in each forward pass. The last one
    may be empty.
    """
    order = np.argsort(-lengths, kind="stable")
    longest_share = -(-len(order) // num_devices)
    mine = order[rank::num_devices]
    return [mine[start : start + batch_size] for start in range(0, longest_share, batch_size)]
