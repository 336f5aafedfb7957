"""Fills sequences with several rows each, which do not see each other."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data.tokens import PART_TOKENS, DocumentRows, RowWriter, TokenizedRows, offsets_of


class PackedRows(DocumentRows):
    """Sequences that several rows fill, the documents, in the order of the sequences."""


def pack(rows: TokenizedRows, capacity: int, writer: RowWriter) -> PackedRows:
    """Packs rows, none of which is longer than `capacity`, into sequences of at most so many tokens.

    The rows are written to `writer` in another order.
    """
    sequences = best_fit(rows.lengths, capacity)
    for part in _parts(np.concatenate(sequences), rows.lengths):
        writer.append(_picked(rows, part))
    return PackedRows(writer.finish(), offsets_of([len(sequence) for sequence in sequences]))


def best_fit(lengths: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Which rows go into which sequence: best-fit decreasing, at most 11/9 of the fewest possible.

    The longest row comes first, and each goes where it leaves the least room; rows of equal length keep their
    order. Source: Johnson 1973, "Near-optimal bin packing algorithms".
    """
    sequences: list[list[int]] = []
    rooms: list[int] = []
    with_room: dict[int, list[int]] = {}
    for row in np.argsort(-lengths, kind="stable"):
        length = int(lengths[row])
        place = bisect_left(rooms, length)
        if place == len(rooms):
            room, sequence = capacity, len(sequences)
            sequences.append([])
        else:
            room = rooms[place]
            sequence = with_room[room].pop()
            if not with_room[room]:
                rooms.pop(place)
        sequences[sequence].append(int(row))
        left = room - length
        if left and not with_room.get(left):
            insort(rooms, left)
        with_room.setdefault(left, []).append(sequence)
    return sequences


def _parts(rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The rows in parts of about PART_TOKENS tokens."""
    numbers = np.cumsum(lengths[rows]) // PART_TOKENS
    yield from np.split(rows, np.flatnonzero(np.diff(numbers)) + 1)


def _picked(rows: TokenizedRows, indices: NDArray[np.int64]) -> TokenizedRows:
    picked = [rows.row(int(index)) for index in indices]
    return TokenizedRows(
        input_ids=np.concatenate([ids for ids, _ in picked]),
        trained=np.concatenate([trained for _, trained in picked]),
        offsets=offsets_of(rows.lengths[indices]),
        lines=rows.lines[indices],
    )
