"""Which rows of several files an epoch has, how often, and which are held out for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data.places import numbered
from finetune_trainer.data.tokens import RowWriter, TokenizedRows, offsets_of

Indices = NDArray[np.int64]

_TOGETHER = 1024
"""How many documents are copied together."""


@dataclass(frozen=True)
class Taken:
    """Some rows of a file."""

    documents: TokenizedRows
    """What the file's rows consist of, as many for each."""
    rows: Indices
    """Which rows, each as often as it is taken."""
    first_file: int = 0
    """How many files there are before those of these rows."""


def held_out(documents: TokenizedRows, per_row: int, fraction: float) -> NDArray[np.bool_]:
    """For each row of `per_row` documents whether it is among the fraction that is held out. Shape (rows,).

    A hash of the row's tokens decides, which is the same on every machine: rows of the same tokens are on one
    side, also in different files, and other rows beside them change nothing.
    """
    limit = round(fraction * 2**64)
    found = np.zeros(len(documents) // per_row, dtype=np.bool_)
    for row in range(len(found)):
        content = hashlib.blake2b(digest_size=8)
        for document in range(row * per_row, (row + 1) * per_row):
            ids, _ = documents.row(document)
            content.update(len(ids).to_bytes(8, "little"))
            content.update(ids.astype("<i4").data)
        found[row] = int.from_bytes(content.digest(), "little") < limit
    return found


def repeated(rows: Indices, times: float, seed: Sequence[int]) -> Indices:
    """The rows, each `times` times in all: whole rounds of them, and a part that `seed` chooses.

    At least one is left.
    """
    return exactly(rows, max(1, round(times * len(rows))), seed)


def exactly(rows: Indices, count: int, seed: Sequence[int]) -> Indices:
    """So many of the rows: all of them as often as they fit, and a part that `seed` chooses."""
    rounds, rest = divmod(count, len(rows))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:rest])
    return np.concatenate([*[rows] * rounds, rows[chosen]])


def together(parts: Sequence[Taken], per_row: int, writer: RowWriter) -> TokenizedRows:
    """The documents of all rows that are taken, one part after the other, given to `writer`."""
    for part in parts:
        indices = (part.rows[:, None] * per_row + np.arange(per_row)).ravel()
        for start in range(0, len(indices), _TOGETHER):
            some = _some(part.documents, indices[start : start + _TOGETHER])
            lines = some.lines + numbered(part.first_file, 0)
            writer.append(TokenizedRows(some.input_ids, some.trained, some.offsets, lines))
    return writer.finish()


def _some(documents: TokenizedRows, indices: Indices) -> TokenizedRows:
    offsets = offsets_of(documents.lengths[indices])
    ranges = [slice(documents.offsets[index], documents.offsets[index + 1]) for index in indices]
    return TokenizedRows(
        input_ids=np.concatenate([documents.input_ids[each] for each in ranges]),
        trained=np.concatenate([documents.trained[each] for each in ranges]),
        offsets=offsets,
        lines=documents.lines[indices],
    )
