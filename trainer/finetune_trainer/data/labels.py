"""Rows whose last answer is one of a few labels, for classification: read, checked, and as tokens.

A row is a conversation. Its tokens end with the label, which alone counts in the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.data.chat import ChatFormat, Encoded
from finetune_trainer.data.objects import RowError, kind_of
from finetune_trainer.data.rows import (
    Lines,
    ParsedLines,
    ReadLine,
    Row,
    parse_lines,
    read_conversation,
)
from finetune_trainer.data.tokens import RowWriter, TokenizedRows, shortened

SHOWN_LABELS = 12
_TASK = "classification"


def parse_labelled(
    lines: Lines, labels: Sequence[str], columns: Mapping[str, str] | None = None
) -> ParsedLines[Row]:
    """The conversations in some lines, each up to its last answer, which is one of the labels.

    Blank lines are skipped. No other message counts in the loss. `columns` are the rows' own names of keys.
    """
    known = frozenset(labels)

    def read(number: int, text: str) -> ReadLine[Row]:
        found = read_conversation(text, _TASK, columns)
        messages = found.row
        last = max(index for index, message in enumerate(messages) if message.role == "assistant")
        label = messages[last].content.strip()
        if label not in known:
            shown = ", ".join(labels[:SHOWN_LABELS]) + (", ..." if len(labels) > SHOWN_LABELS else "")
            what = f"must be one of spec.classifier_config.label_tokens, {shown}; is {kind_of(label)}"
            raise RowError(f"the last assistant message: {what}")
        before = (replace(message, trained=False) for message in messages[:last])
        row = Row(number, (*before, replace(messages[last], content=label)))
        return ReadLine(row, found.ignored, found.form)

    return parse_lines(lines, read)


def encode_labelled(chat: ChatFormat, ids: Mapping[str, int], row: Row) -> Encoded:
    """The tokens of a row, which end with its label. `ids` are the tokens of the labels.

    Raises FineTuneError (InvalidData) as `ChatFormat.encode` does, and where the label is no token of its own
    in the text.
    """
    encoded = chat.encode(row)
    label = row.messages[-1].content
    answer = [index for index, counts in enumerate(encoded.trained) if counts]
    at = next((index for index in answer if encoded.input_ids[index] == ids[label]), None)
    if at is None:
        written = ", ".join(repr(chat.token(encoded.input_ids[index])) for index in answer)
        what = (
            f"the label {label!r} is not one token where {chat.source} writes it, but {written}; put brackets"
            f" around it, as in '[[{label}]]'"
        )
        raise FineTuneError(FailureClass.INVALID_DATA, f"the last assistant message: {what}")
    return Encoded(encoded.input_ids[: at + 1], [False] * at + [True], encoded.left_out)


def truncate_before(rows: TokenizedRows, context_length: int, writer: RowWriter) -> tuple[TokenizedRows, int]:
    """Cuts every row to its last `context_length` tokens, since its label is the last one.

    Returns also how many rows were longer. Where there are any, what is left of all is given to `writer`.
    """
    longer = int((rows.lengths > context_length).sum())
    if not longer:
        return rows, 0
    for part in rows.parts():
        writer.append(shortened(part, np.maximum(part.lengths - context_length, 0), part.lengths))
    return writer.finish(), longer


def labels_of(rows: TokenizedRows, ids: Sequence[int]) -> NDArray[np.int64]:
    """For each row, which of the labels it has: an index into `ids`, their tokens. Shape (rows,)."""
    index = {token: position for position, token in enumerate(ids)}
    found = [index[int(token)] for part in rows.parts() for token in part.input_ids[part.trained]]
    return np.array(found, dtype=np.int64)


def remarks_on_labels(train: TokenizedRows, ids: Mapping[str, int]) -> list[str]:
    """A remark where some labels are in no training row."""
    counts = np.bincount(labels_of(train, list(ids.values())), minlength=len(ids))
    absent = [label for label, count in zip(ids, counts, strict=True) if not count]
    if not absent:
        return []
    shown = ", ".join(absent[:SHOWN_LABELS]) + (", ..." if len(absent) > SHOWN_LABELS else "")
    what = f"{shown} {'is' if len(absent) == 1 else 'are'} the label of no training row, and cannot be learnt"
    return [f"spec.classifier_config.label_tokens: {what}"]
