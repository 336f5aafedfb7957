"""Rows as tokens: flat arrays that all workers share, and truncation to the context length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.chat import ChatFormat
from finetune_trainer.rows import Row


@dataclass(frozen=True)
class TokenizedRows:
    """Rows laid end to end; row i is `offsets[i]` to `offsets[i + 1]`."""

    input_ids: NDArray[np.int32]
    """Token ids, shape (tokens,)."""
    trained: NDArray[np.bool_]
    """True on tokens that count in the loss, shape (tokens,)."""
    offsets: NDArray[np.int64]
    """Shape (rows + 1,)."""
    lines: NDArray[np.int64]
    """The line of its file that each row comes from, shape (rows,)."""

    def __len__(self) -> int:
        return len(self.lines)

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Token ids of a row, and which of them count; views."""
        tokens = slice(self.offsets[index], self.offsets[index + 1])
        return self.input_ids[tokens], self.trained[tokens]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.offsets)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.lengths.max())

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.input_ids.nbytes + self.trained.nbytes + self.offsets.nbytes + self.lines.nbytes


def tokenize_rows(rows: Sequence[Row], chat_format: ChatFormat, source: str) -> TokenizedRows:
    """All rows in full length. Raises FineTuneError (InvalidData) with every row that the chat format cannot take, as `source:line`."""
    encoded = []
    problems: list[str] = []
    for row in rows:
        try:
            encoded.append(chat_format.encode(row))
        except FineTuneError as error:
            problems += [f"{source}:{row.line}: {problem}" for problem in error.problems]
    if problems:
        raise FineTuneError(FailureClass.INVALID_DATA, *problems)
    lengths = [len(each.input_ids) for each in encoded]
    return TokenizedRows(
        input_ids=np.concatenate([np.asarray(each.input_ids, dtype=np.int32) for each in encoded]),
        trained=np.concatenate([np.asarray(each.trained, dtype=np.bool_) for each in encoded]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        lines=np.array([row.line for row in rows], dtype=np.int64),
    )


def truncate(rows: TokenizedRows, context_length: int, source: str) -> tuple[TokenizedRows, int]:
    """The first `context_length` tokens of every row, and how many rows were longer.

    Raises FineTuneError (InvalidData) with every row in which nothing is left to train on, as `source:line`.
    """
    lengths = np.minimum(rows.lengths, context_length)
    kept = np.concatenate([np.arange(start, start + length) for start, length in zip(rows.offsets[:-1], lengths, strict=True)])
    cut = TokenizedRows(
        input_ids=rows.input_ids[kept],
        trained=rows.trained[kept],
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        lines=rows.lines,
    )
    problems = [
        f"{source}:{cut.lines[index]}: {_nothing_to_train(rows, index, context_length)}"
        for index in range(len(cut))
        if not cut.row(index)[1][1:].any()
    ]
    if problems:
        raise FineTuneError(FailureClass.INVALID_DATA, *problems)
    return cut, int((rows.lengths > context_length).sum())


def trained_tokens(rows: TokenizedRows) -> int:
    """Tokens that count in the loss of an epoch; the first of a row is never predicted, so it never counts."""
    return int(rows.trained.sum()) - int(rows.trained[rows.offsets[:-1]].sum())


def _nothing_to_train(rows: TokenizedRows, index: int, context_length: int) -> str:
    if rows.row(index)[1][1:].any():
        length = rows.lengths[index]
        return f"nothing to train on is left of its {length} tokens after truncation to {context_length}; raise spec.context_length"
    return "has nothing to train on; an assistant message with text is needed"
