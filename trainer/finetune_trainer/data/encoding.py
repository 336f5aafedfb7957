"""From lines of a file to tokens. Other processes may do it too: it imports neither torch nor storage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, Protocol, TypeVar

import numpy as np

from finetune_api.failure import FineTuneError
from finetune_trainer.data.chat import ChatFormat, Encoded, Task
from finetune_trainer.data.labels import encode_labelled, parse_labelled
from finetune_trainer.data.pairs import parse_pairs
from finetune_trainer.data.remarks import Remarks
from finetune_trainer.data.rows import Lines, Row, Text, parse_rows
from finetune_trainer.data.tokens import TokenizedRows, offsets_of

T = TypeVar("T", bound=Row | Text)


@dataclass(frozen=True, slots=True)
class EncodedLines:
    """What some lines of a file are as tokens."""

    rows: TokenizedRows
    """Without those that have a problem; none where a line is no row."""
    unreadable: list[str]
    """Problems of lines that are no row, as `line: where: what`."""
    refused: list[str]
    """Problems of rows that cannot be written as text, in the same form."""
    remarks: Remarks


class LineEncoder(Protocol):
    """Turns lines into tokens."""

    def encode(self, lines: Lines, *, check_only: bool = False) -> EncodedLines:
        """The tokens of the rows in some lines, without truncation; with `check_only` problems alone."""


@dataclass(frozen=True)
class ConversationEncoder:
    """A `LineEncoder` of conversations, for the tasks `causal_lm` and `instruction_tuning`."""

    task: Task
    chat: ChatFormat
    columns: Mapping[str, str] = field(default_factory=dict)
    """The rows' own names of keys."""

    def encode(self, lines: Lines, *, check_only: bool = False) -> EncodedLines:
        """See `LineEncoder`."""
        parsed = parse_rows(lines, self.task, self.columns)
        collected = _Collected(self.chat, self.chat.encode, parsed.problems, parsed.remarks)
        for row in parsed.rows if not (parsed.problems or check_only) else []:
            collected.add(row)
        return collected.encoded()


@dataclass(frozen=True)
class LabelEncoder:
    """A `LineEncoder` of conversations whose last answer is a label."""

    labels: Mapping[str, int]
    """The labels, and the token of each."""
    chat: ChatFormat
    columns: Mapping[str, str] = field(default_factory=dict)
    """The rows' own names of keys."""

    def encode(self, lines: Lines, *, check_only: bool = False) -> EncodedLines:
        """See `LineEncoder`."""
        parsed = parse_labelled(lines, list(self.labels), self.columns)
        encode = partial(encode_labelled, self.chat, self.labels)
        collected = _Collected(self.chat, encode, parsed.problems, parsed.remarks)
        for row in parsed.rows if not (parsed.problems or check_only) else []:
            collected.add(row)
        return collected.encoded()


@dataclass(frozen=True)
class PairEncoder:
    """A `LineEncoder` of pairs of answers: of each, the chosen and then the rejected conversation."""

    chat: ChatFormat
    columns: Mapping[str, str] = field(default_factory=dict)
    """The rows' own names of keys."""

    def encode(self, lines: Lines, *, check_only: bool = False) -> EncodedLines:
        """See `LineEncoder`."""
        parsed = parse_pairs(lines, self.columns)
        collected = _Collected(self.chat, self.chat.encode, parsed.problems, parsed.remarks)
        for pair in parsed.rows if not (parsed.problems or check_only) else []:
            collected.add(pair.chosen, pair.rejected)
        return collected.encoded()


class _Collected(Generic[T]):
    """What is found in some lines, row by row."""

    def __init__(
        self, chat: ChatFormat, encode: Callable[[T], Encoded], unreadable: list[str], remarks: Remarks
    ) -> None:
        self._chat = chat
        self._encode = encode
        self._unreadable = unreadable
        self._remarks = remarks
        self._refused: list[str] = []
        self._rows: list[tuple[int, Encoded]] = []

    def add(self, *conversations: T) -> None:
        """Adds the conversations of a line, unless one of them has a problem."""
        line = conversations[0].line
        try:
            encoded = [self._encode(each) for each in conversations]
        except FineTuneError as error:
            self._refused += [f"{line}: {problem}" for problem in error.problems]
            return
        if len(encoded) > 1 and all(each.input_ids == encoded[0].input_ids for each in encoded):
            self._refused.append(f"{line}: chosen and rejected: are the same tokens; leave the pair out")
            return
        self._rows += [(line, each) for each in encoded]
        if any(each.left_out for each in encoded):
            self._remarks.leaves_out(line)
        controls = [token for each in conversations for token in self._chat.control_tokens(each)]
        if controls:
            self._remarks.controls(controls, line)

    def encoded(self) -> EncodedLines:
        """All of it."""
        nothing = np.zeros(0, dtype=np.int32)
        ids = [np.array(each.input_ids, dtype=np.int32) for _, each in self._rows]
        trained = [np.array(each.trained, dtype=np.bool_) for _, each in self._rows]
        rows = TokenizedRows(
            input_ids=np.concatenate([nothing, *ids]),
            trained=np.concatenate([nothing.astype(np.bool_), *trained]),
            offsets=offsets_of([len(each) for each in ids]),
            lines=np.array([line for line, _ in self._rows], dtype=np.int64),
        )
        return EncodedLines(rows, self._unreadable, self._refused, self._remarks)
