"""Statistics of rows: how their lengths are distributed, and which of them are there twice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finetune_api.status import StatusModel
from finetune_trainer.data.tokens import TokenizedRows, digests

MOST_BINS = 12


class Bin(StatusModel):
    """How many rows have from `shortest` to `longest` tokens."""

    shortest: int
    longest: int
    rows: int


class Repeats(StatusModel):
    """Rows that have the same tokens as a row before them, or of another file."""

    rows: int
    """How many there are."""
    line: int
    """The number of the first one's line, see `places`."""
    of_line: int
    """The line of the row that it repeats."""


def histogram(lengths: NDArray[np.int64], most: int = MOST_BINS) -> tuple[Bin, ...]:
    """How many rows have which length, in at most `most` bins as wide as 1, 2 or 5 times a power of 10.

    Where the longest row is more than twice as long as 99 of 100 rows, these share the bins, and one more has
    the rest.
    """
    shortest, longest = int(lengths.min()), int(lengths.max())
    usual = int(np.percentile(lengths, 99, method="lower"))
    last = longest if longest <= 2 * usual else usual
    width = next(
        width
        for power in range(19)
        for width in (10**power, 2 * 10**power, 5 * 10**power)
        if last // width - shortest // width < most
    )
    edges = np.arange(shortest // width, last // width + 2) * width
    bins = [(int(edge), int(edge) + width - 1) for edge in edges[:-1]]
    if edges[-1] <= longest:
        bins.append((int(edges[-1]), longest))
        edges = np.append(edges, longest + 1)
    counts = np.histogram(lengths, edges)[0]
    return tuple(
        Bin(shortest=begin, longest=end, rows=int(count))
        for (begin, end), count in zip(bins, counts, strict=True)
    )


def repeats(documents: TokenizedRows, per_row: int = 1) -> Repeats | None:
    """The rows that repeat an earlier one; None where there are none. A row is `per_row` documents."""
    _, first, which = np.unique(_digests(documents, per_row), return_index=True, return_inverse=True)
    earliest = first[which.ravel()]
    again = np.flatnonzero(earliest != np.arange(len(earliest)))
    if not again.size:
        return None
    lines = documents.lines[::per_row]
    return Repeats(rows=len(again), line=int(lines[again[0]]), of_line=int(lines[earliest[again[0]]]))


def repeats_of(train: TokenizedRows, documents: TokenizedRows, per_row: int = 1) -> Repeats | None:
    """The rows that are also rows of `train`; None where there are none. A row is `per_row` documents."""
    known, first = np.unique(_digests(train, per_row), return_index=True)
    each = _digests(documents, per_row)
    place = np.minimum(np.searchsorted(known, each), len(known) - 1)
    shared = np.flatnonzero(known[place] == each)
    if not shared.size:
        return None
    return Repeats(
        rows=len(shared),
        line=int(documents.lines[::per_row][shared[0]]),
        of_line=int(train.lines[::per_row][first[place[shared[0]]]]),
    )


def _digests(documents: TokenizedRows, per_row: int) -> NDArray[np.bytes_]:
    """A digest for each row, which is one of each of its documents. Shape (rows,)."""
    each = digests(documents, range(len(documents)))
    return each.view(f"S{each.itemsize * per_row}")
