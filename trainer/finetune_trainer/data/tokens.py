"""Tokenized rows in flat arrays, and their truncation to the context length."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.data.remarks import Remarks

IGNORED = -100
"""The label of a position whose prediction does not count: the value that PyTorch and transformers use."""
PART_TOKENS = 2**20
"""How many tokens are looked at together where something is computed of all."""


@dataclass(frozen=True)
class TokenizedRows:
    """Tokenized rows, one after the other. Row i is at `offsets[i]` to `offsets[i + 1]`."""

    input_ids: NDArray[np.int32]
    """Token ids, shape (tokens,)."""
    trained: NDArray[np.bool_]
    """For each token, whether it counts in the loss. Shape (tokens,)."""
    offsets: NDArray[np.int64]
    """Where each row begins, and at the end where the last one ends. Shape (rows + 1,)."""
    lines: NDArray[np.int64]
    """For each row, its 1-based line in the file. Shape (rows,)."""
    directory: Path | None = None
    """Where the arrays are that these are mapped from; None for those in memory."""

    def __len__(self) -> int:
        return len(self.lines)

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """The token ids of a row, and for each whether it counts in the loss. Both are views."""
        tokens = slice(self.offsets[index], self.offsets[index + 1])
        return self.input_ids[tokens], self.trained[tokens]

    def labels(self, index: int) -> NDArray[np.int64]:
        """The labels of a row: for each position the next token, or IGNORED where that does not count.

        So the first token of a row is never predicted, and the last label is always IGNORED.
        """
        ids, trained = self.row(index)
        labels = np.full(len(ids), IGNORED, dtype=np.int64)
        labels[:-1] = np.where(trained[1:], ids[1:], IGNORED)
        return labels

    def laid_out(self, indices: Sequence[int] | NDArray[np.int64]) -> tuple[TokenizedRows, NDArray[np.int64]]:
        """What the rows with these indices hold that does not see each other: rows, and which of them.

        Here, the rows themselves.
        """
        return self, np.asarray(indices, dtype=np.int64)

    def parts(self) -> Iterator[TokenizedRows]:
        """The rows in parts of about PART_TOKENS tokens, in their order. Tokens are views."""
        start = 0
        while start < len(self):
            fitting = int(np.searchsorted(self.offsets, self.offsets[start] + PART_TOKENS, side="right")) - 1
            stop = max(start + 1, fitting)
            first, end = self.offsets[start], self.offsets[stop]
            yield TokenizedRows(
                input_ids=self.input_ids[first:end],
                trained=self.trained[first:end],
                offsets=self.offsets[start : stop + 1] - first,
                lines=self.lines[start:stop],
            )
            start = stop

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """How many labels of each row are not IGNORED. Shape (rows,)."""
        of_parts = [np.zeros(0, dtype=np.int64)]
        for part in self.parts():
            counted = np.concatenate([[0], np.cumsum(part.trained, dtype=np.int64)])
            after_first = np.minimum(part.offsets[:-1] + 1, part.offsets[1:])
            of_parts.append(counted[part.offsets[1:]] - counted[after_first])
        return np.concatenate(of_parts)

    @property
    def weights(self) -> NDArray[np.int64]:
        """What each row counts for in a mean of losses: here, its labels that count. Shape (rows,)."""
        return self.predicted

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the rows."""
        digest = hashlib.sha256()
        for array in self.hashed:
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @property
    def hashed(self) -> list[NDArray[np.generic]]:
        """What makes these rows other rows."""
        return [self.input_ids, self.trained, self.offsets]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of each row. Shape (rows,)."""
        return np.diff(self.offsets)

    @property
    def longest(self) -> int:
        """The number of tokens of the longest row."""
        return int(self.lengths.max())

    @property
    def nbytes(self) -> int:
        """The size of all arrays in bytes."""
        return self.input_ids.nbytes + self.trained.nbytes + self.offsets.nbytes + self.lines.nbytes


class DocumentRows(TokenizedRows):
    """Rows of several documents each: what one sees, the others do not."""

    documents: TokenizedRows
    """All of them, in the order of the rows."""
    first: NDArray[np.int64]
    """The first document of each row, and at the end their number. Shape (rows + 1,)."""

    def __init__(self, documents: TokenizedRows, first: NDArray[np.int64]) -> None:
        super().__init__(
            input_ids=documents.input_ids,
            trained=documents.trained,
            offsets=documents.offsets[first],
            lines=documents.lines[first[:-1]],
            directory=documents.directory,
        )
        object.__setattr__(self, "documents", documents)
        object.__setattr__(self, "first", first)

    def __reduce__(self) -> tuple[Callable[..., DocumentRows], tuple[object, ...]]:
        return (type(self), (self.documents, self.first))

    def over(self, documents: TokenizedRows) -> DocumentRows:
        """The same rows of these documents, which are the same elsewhere."""
        return type(self)(documents, self.first)

    def laid_out(self, indices: Sequence[int] | NDArray[np.int64]) -> tuple[TokenizedRows, NDArray[np.int64]]:
        """See `TokenizedRows`: the documents."""
        ranges = [np.arange(self.first[index], self.first[index + 1]) for index in indices]
        return self.documents, np.concatenate([np.zeros(0, dtype=np.int64), *ranges])

    def labels(self, index: int) -> NDArray[np.int64]:
        """See `TokenizedRows`. The first token of a document is not predicted either."""
        documents, indices = self.laid_out([index])
        return np.concatenate([documents.labels(int(each)) for each in indices])

    @property
    def hashed(self) -> list[NDArray[np.generic]]:
        """See `TokenizedRows`."""
        return [*super().hashed, self.documents.offsets]

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """See `TokenizedRows`."""
        return np.add.reduceat(self.documents.predicted, self.first[:-1])


@dataclass(frozen=True)
class FileTokens:
    """All rows of a file as tokens, before truncation."""

    rows: TokenizedRows
    remarks: Remarks


class RowWriter(Protocol):
    """Takes rows part by part, and gives all of them as one."""

    def append(self, rows: TokenizedRows) -> None:
        """Adds rows after those that are there."""

    def finish(self) -> TokenizedRows:
        """All rows, once there are no more."""


class RowsInMemory:
    """A `RowWriter` for rows that are few."""

    def __init__(self) -> None:
        self._parts: list[TokenizedRows] = []

    def append(self, rows: TokenizedRows) -> None:
        """See `RowWriter`."""
        self._parts.append(rows)

    def finish(self) -> TokenizedRows:
        """See `RowWriter`. There must be at least one part."""
        parts = self._parts
        return TokenizedRows(
            input_ids=np.concatenate([part.input_ids for part in parts]),
            trained=np.concatenate([part.trained for part in parts]),
            offsets=offsets_of(np.concatenate([part.lengths for part in parts])),
            lines=np.concatenate([part.lines for part in parts]),
        )


def truncate(
    rows: TokenizedRows, context_length: int, place: Callable[[int], str], writer: RowWriter
) -> tuple[TokenizedRows, int]:
    """Cuts every row to its first `context_length` tokens, and returns how many rows were longer.

    Where there are any, what is left of all rows is given to `writer`. Raises FineTuneError (InvalidData)
    with a problem `place: what` for every row in which no token is left that counts.
    """
    longer = int((rows.lengths > context_length).sum())
    if longer:
        for part in rows.parts():
            kept = np.minimum(part.lengths, context_length)
            writer.append(shortened(part, np.zeros_like(kept), kept))
    cut = writer.finish() if longer else rows
    without = np.flatnonzero(cut.predicted == 0)
    if without.size:
        whole = rows.predicted
        problems = [
            f"{place(line)}: {_nothing_to_train_on(length, context_length, cut_off=bool(predicted))}"
            for line, length, predicted in zip(
                rows.lines[without].tolist(), rows.lengths[without].tolist(), whole[without], strict=True
            )
        ]
        raise FineTuneError(FailureClass.INVALID_DATA, *problems)
    return cut, longer


def shortened(rows: TokenizedRows, begin: NDArray[np.int64], end: NDArray[np.int64]) -> TokenizedRows:
    """Of each row the tokens from `begin` on and before `end`; both of shape (rows,)."""
    position_in_row = np.arange(len(rows.input_ids)) - np.repeat(rows.offsets[:-1], rows.lengths)
    kept = (position_in_row >= np.repeat(begin, rows.lengths)) & (
        position_in_row < np.repeat(end, rows.lengths)
    )
    return TokenizedRows(
        input_ids=rows.input_ids[kept],
        trained=rows.trained[kept],
        offsets=offsets_of(end - begin),
        lines=rows.lines,
    )


def trained_tokens(rows: TokenizedRows) -> int:
    """The number of tokens that count in the loss of an epoch."""
    return int(rows.predicted.sum())


def rows_also_in(train: TokenizedRows, rows: TokenizedRows) -> int:
    """How many of the rows have the same tokens as a row of `train`."""
    as_long = np.flatnonzero(np.isin(train.lengths, rows.lengths))
    return int(np.isin(digests(rows, range(len(rows))), digests(train, as_long)).sum())


def digests(rows: TokenizedRows, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bytes_]:
    """Digests of the tokens of some rows: 16 bytes for each, and others for other tokens."""
    size = 16
    found = np.empty(len(indices), dtype=f"S{size}")
    for position, index in enumerate(indices):
        found[position] = hashlib.blake2b(rows.row(int(index))[0].data, digest_size=size).digest()
    return found


def _nothing_to_train_on(length: int, context_length: int, *, cut_off: bool) -> str:
    if cut_off:
        return (
            f"the first {context_length} of its {length} tokens hold nothing to train on;"
            " raise spec.context_length"
        )
    return f"none of its {length} tokens counts in the loss; give it an answer, or leave it out"


def offsets_of(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Where rows of these lengths begin, one after the other, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
