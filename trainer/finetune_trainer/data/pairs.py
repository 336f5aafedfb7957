"""Pairs of answers to one prompt, of which one is preferred: read, checked, and as tokens.

A row is `{"chosen": [...], "rejected": [...]}`, two conversations that begin alike; or `prompt` stands
beside them, a text or messages, and they are answers or whole conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.data.batches import Indices
from finetune_trainer.data.forms import renamed
from finetune_trainer.data.objects import RowError, keys_of, kind_of, listed, parse_object
from finetune_trainer.data.rows import (
    Lines,
    Message,
    ParsedLines,
    ReadLine,
    Row,
    parse_lines,
    read_messages,
)
from finetune_trainer.data.tokens import DocumentRows, RowWriter, TokenizedRows, shortened

ANSWERS: tuple[Literal["chosen"], Literal["rejected"]] = ("chosen", "rejected")
_FORM = '{"chosen": [...], "rejected": [...]}'
_TASK = "preference_tuning"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two conversations with the same prompt. Only what follows it counts in the loss."""

    chosen: Row
    rejected: Row


def parse_pairs(lines: Lines, columns: Mapping[str, str] | None = None) -> ParsedLines[Pair]:
    """The pairs in some lines; blank lines are skipped. What is remarked are the keys that are ignored.

    `columns` are the rows' own names of keys.
    """
    return parse_lines(lines, partial(_pair, columns or {}))


def _pair(columns: Mapping[str, str], number: int, text: str) -> ReadLine[Pair]:
    given = parse_object(text, _FORM)
    document = renamed(given, columns)
    missing = [columns.get(key, key) for key in ANSWERS if key not in document]
    if missing:
        raise RowError(*(f"{key}: is missing; the row has {keys_of(given)}" for key in missing))
    unknown = [key for key in document if key not in ("prompt", *ANSWERS)]
    found: dict[str, list[Message]] = {}
    problems: list[str] = []
    for key in ("prompt", *ANSWERS):
        if key not in document:
            continue
        try:
            found[key], more = _said(listed(document[key], columns.get(key, key)), key, columns.get(key, key))
        except RowError as bad:
            problems += bad.problems
        else:
            unknown += more
    if problems:
        raise RowError(*problems)
    prompt = found.get("prompt", [])
    chosen, rejected = (_after(prompt, found[key]) for key in ANSWERS)
    shared = _shared(chosen, rejected)
    _check(chosen, rejected, shared)
    return ReadLine(Pair(*(Row(number, _counted_from(shared, each)) for each in (chosen, rejected))), unknown)


def _said(value: object, key: str, column: str) -> tuple[list[Message], list[str]]:
    """The messages that stand under a key; a text is a question or an answer."""
    if isinstance(value, list):
        return read_messages(value, column, _TASK)
    role = "user" if key == "prompt" else "assistant"
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{column}: must be a text or a list of messages, is {kind_of(value)}")
    return read_messages([{"role": role, "content": value}], column, _TASK)


def _after(prompt: list[Message], said: list[Message]) -> list[Message]:
    """The whole conversation; on the hub `chosen` often repeats the prompt."""
    return said if said[: len(prompt)] == prompt else [*prompt, *said]


def _shared(chosen: Sequence[Message], rejected: Sequence[Message]) -> int:
    """How many messages both begin with."""
    alike = (one == other for one, other in zip(chosen, rejected, strict=False))
    return next((index for index, same in enumerate(alike) if not same), min(len(chosen), len(rejected)))


def _check(chosen: Sequence[Message], rejected: Sequence[Message], shared: int) -> None:
    """Raises RowError where two conversations are no pair."""
    if chosen == rejected:
        raise RowError("chosen and rejected: are equal; a pair needs two answers, or is left out")
    problems = []
    asked = "user" in [message.role for message in chosen[:shared]]
    if not any(message.role == "user" for message in (*chosen, *rejected)):
        problems.append("prompt: is missing; chosen and rejected are answers, and need a question")
    elif not asked:
        problems.append("chosen and rejected: begin with different questions; a pair answers the same one")
    for key, conversation in zip(ANSWERS, (chosen, rejected), strict=True):
        answers = conversation[shared:]
        if not answers:
            problems.append(f"{key}: is how the other one begins; end both with an answer of their own")
        elif asked and answers[0].role != "assistant":
            problems.append(
                f"{key}: differs from the other one in a {answers[0].role} message; all before the answers"
                " must be the same"
            )
        elif asked and answers[-1].role != "assistant":
            problems.append(f"{key}: ends with a {answers[-1].role} message; end it with an answer")
        if [message.role for message in conversation].count("system") > 1:
            problems.append(f"{key}: has more than one system message; at most one is possible")
    if problems:
        raise RowError(*problems)


def _counted_from(shared: int, conversation: Sequence[Message]) -> tuple[Message, ...]:
    prompt = (replace(message, trained=False) for message in conversation[:shared])
    return (*prompt, *conversation[shared:])


@dataclass(frozen=True)
class Reference:
    """What the model as it was before training says of each document of the rows.

    It is the sum of the log-probabilities of the tokens that count, in fp32; shapes (documents,).
    """

    train: NDArray[np.float32]
    validation: NDArray[np.float32] | None
    validated: str | None
    """The fingerprint of the validation rows; a run resumes with the same training rows only."""


class PairRows(DocumentRows):
    """Pairs of answers: the documents 2 i and 2 i + 1 are row i's chosen and rejected conversation.

    A row's loss is that of the pair, so each weighs the same. `reference` is what the model as it was before
    training says of each document, the sum of the log-probabilities of its tokens that count; shape
    (documents,), None as long as that is not known.
    """

    reference: NDArray[np.float32] | None

    def __init__(self, documents: TokenizedRows, reference: NDArray[np.float32] | None = None) -> None:
        super().__init__(documents, np.arange(0, len(documents) + 1, 2))
        object.__setattr__(self, "reference", reference)

    def __reduce__(self) -> tuple[Callable[..., PairRows], tuple[TokenizedRows, NDArray[np.float32] | None]]:
        return (PairRows, (self.documents, self.reference))

    def over(self, documents: TokenizedRows) -> PairRows:
        """See `DocumentRows`."""
        return PairRows(documents, self.reference)

    @property
    def weights(self) -> NDArray[np.int64]:
        """See `TokenizedRows`."""
        return np.broadcast_to(np.int64(1), len(self))

    def reference_of(self, indices: Sequence[int] | Indices) -> NDArray[np.float32] | None:
        """What is known of the documents of some rows, in the order of `laid_out`."""
        if self.reference is None:
            return None
        return self.reference[self.laid_out(indices)[1]]


def truncate_pairs(
    documents: TokenizedRows, context_length: int, place: Callable[[int], str], writer: RowWriter
) -> tuple[PairRows, int]:
    """Shortens prompts at their beginning, by as much for both conversations of a pair, so that both fit.

    Returns how many pairs were longer. Where there are any, what is left of all is given to `writer`. Raises
    FineTuneError (InvalidData) with a problem `place: what` for every pair whose answers do not fit.
    """
    longest = documents.lengths.reshape(-1, 2).max(axis=1)
    over = np.repeat(np.maximum(longest - context_length, 0), 2)
    problems = []
    for pair in np.flatnonzero(longest > context_length):
        both = (int(2 * pair), int(2 * pair) + 1)
        prompt = min(int(np.argmax(documents.row(index)[1])) for index in both)
        problems += [
            f"{place(int(documents.lines[index]))}: {ANSWERS[index % 2]}: its answer has {answer} tokens,"
            f" which with a prompt do not fit into {context_length}; raise spec.context_length"
            for index in both
            if (answer := int(documents.lengths[index]) - prompt) >= context_length
        ]
    if problems:
        raise FineTuneError(FailureClass.INVALID_DATA, *problems)
    longer = int((longest > context_length).sum())
    if not longer:
        return PairRows(documents), 0
    seen = 0
    for part in documents.parts():
        writer.append(shortened(part, over[seen : seen + len(part)], part.lengths))
        seen += len(part)
    return PairRows(writer.finish()), longer
