"""Tokenized rows in flat arrays, which all workers share, and their truncation to the context length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.data.chat import ChatFormat
from finetune_trainer.data.rows import Row

IGNORED = -100
"""The label of a position whose prediction does not count: the value that PyTorch and transformers use."""


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

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """How many labels of each row are not IGNORED. Shape (rows,)."""
        counted = np.concatenate([[0], np.cumsum(self.trained, dtype=np.int64)])
        after_first = np.minimum(self.offsets[:-1] + 1, self.offsets[1:])
        predicted: NDArray[np.int64] = counted[self.offsets[1:]] - counted[after_first]
        return predicted

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


def tokenize_rows(rows: Sequence[Row], chat_format: ChatFormat, source: str) -> TokenizedRows:
    """Tokenizes rows, of which there is at least one, without truncation.

    Raises FineTuneError (InvalidData) with a problem `source:line: what` for every row that the
    chat format refuses.
    """
    input_ids: list[NDArray[np.int32]] = []
    trained: list[NDArray[np.bool_]] = []
    problems: list[str] = []
    for row in rows:
        try:
            encoded = chat_format.encode(row)
        except FineTuneError as error:
            problems += [f"{source}:{row.line}: {problem}" for problem in error.problems]
            continue
        input_ids.append(np.array(encoded.input_ids, dtype=np.int32))
        trained.append(np.array(encoded.trained, dtype=np.bool_))
    if problems:
        raise FineTuneError(FailureClass.INVALID_DATA, *problems)
    return TokenizedRows(
        input_ids=np.concatenate(input_ids),
        trained=np.concatenate(trained),
        offsets=_offsets([len(ids) for ids in input_ids]),
        lines=np.array([row.line for row in rows], dtype=np.int64),
    )


def truncate(rows: TokenizedRows, context_length: int, source: str) -> tuple[TokenizedRows, int]:
    """Cuts every row to its first `context_length` tokens, and returns how many rows were longer.

    Raises FineTuneError (InvalidData) with a problem `source:line: what` for every row in which no token is
    left that counts in the loss.
    """
    position_in_row = np.arange(len(rows.input_ids)) - np.repeat(rows.offsets[:-1], rows.lengths)
    kept = position_in_row < context_length
    cut = TokenizedRows(
        input_ids=rows.input_ids[kept],
        trained=rows.trained[kept],
        offsets=_offsets(np.minimum(rows.lengths, context_length)),
        lines=rows.lines,
    )
    without = np.flatnonzero(cut.predicted == 0)
    if without.size:
        whole = rows.predicted
        problems = [
            f"{source}:{line}: {_nothing_to_train_on(int(length), context_length, cut_off=bool(predicted))}"
            for line, length, predicted in zip(
                rows.lines[without], rows.lengths[without], whole[without], strict=True
            )
        ]
        raise FineTuneError(FailureClass.INVALID_DATA, *problems)
    return cut, int((rows.lengths > context_length).sum())


def trained_tokens(rows: TokenizedRows) -> int:
    """The number of tokens that count in the loss of an epoch."""
    return int(rows.predicted.sum())


def _nothing_to_train_on(length: int, context_length: int, *, cut_off: bool) -> str:
    if cut_off:
        return (
            f"the first {context_length} of its {length} tokens hold nothing to train on;"
            " raise spec.context_length"
        )
    return f"none of its {length} tokens counts in the loss; give it an answer, or leave it out"


def _offsets(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
