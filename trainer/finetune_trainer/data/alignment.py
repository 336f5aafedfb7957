"""Finds where each answer of a conversation is in its text, in a time that grows with the text alone.

The conversation is written a few times more, with marks in place of contents. What stands between the marks
is what the template writes around any content; the text must be made of these pieces and the contents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from finetune_trainer.data.rows import Message

PRIVATE_USE = range(0xE000, 0xF900)
"""Characters without a meaning in Unicode, which no template treats in a special way."""

Write = Callable[[Sequence[Message]], str]
"""Writes a conversation as text."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an answer is in the text."""

    previous: int | None
    """The message whose content is written last before the answer; None when there is none."""
    start: int
    """Where that content ends."""
    before: str
    """What is written between that and the content of an answer, whatever it is."""
    end: int
    """Where the answer's content ends."""


class Marks:
    """Marks that stand in for the contents of messages; `taken` is text in which none may occur."""

    def __init__(self, taken: str) -> None:
        unused = (sign for sign in map(chr, PRIVATE_USE) if sign not in taken)
        self._open, self._close = next(unused), next(unused)
        self._pattern = re.compile(f"{self._open}([0-9]+){self._close}")

    @classmethod
    def beside(cls, messages: Sequence[Message], text: str) -> Marks:
        """Marks that occur neither in the messages nor in their text."""
        return cls("".join([text, *(message.content for message in messages)]))

    def marked(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with marks as their contents, each with its index."""
        return [
            replace(message, content=f"{self._open}{index}{self._close}")
            for index, message in enumerate(messages)
        ]

    def split(self, text: str) -> tuple[list[int], list[str]]:
        """The indices of the marks in a text in their order, and the pieces between and around them."""
        pieces = self._pattern.split(text)
        return [int(index) for index in pieces[1::2]], pieces[::2]


def places(messages: Sequence[Message], text: str, marks: Marks, write: Write) -> dict[int, Place] | None:
    """The place of each answer by the index of its message; `text` is what `write` makes of the messages.

    None when the text is not made of pieces that are the same whatever the contents are.
    """
    marked = marks.marked(messages)
    order, pieces = marks.split(write(marked))
    answers = [index for index in order if messages[index].role == "assistant"]
    if len(set(order)) < len(order) or len(answers) < sum(each.role == "assistant" for each in messages):
        return None
    written: dict[int, str] = {}
    for chosen in _not_beside_each_other(messages, order):
        alone = _alone(chosen, messages, marked, order, pieces, marks, write)
        if alone is None:
            return None
        written |= alone

    found: dict[int, Place] = {}
    start = 0
    for position, index in enumerate(order):
        if index in written:
            fitting = [written[index]]
        else:
            content = messages[index].content
            fitting = [pieces[position] + each for each in dict.fromkeys((content, content.strip()))]
        following = order[position + 1] if position + 1 < len(order) else None
        then = written[following] if following in written else pieces[position + 1]
        fitting = [
            each
            for each in fitting
            if text.startswith(then, start + len(each)) and text.startswith(each, start)
        ]
        if len(fitting) != 1:
            return None
        end = start + len(fitting[0])
        if index in written:
            previous = order[position - 1] if position else None
            found[index] = Place(previous, start, pieces[position], end)
        start = end
    return found if text[start:] == pieces[-1] else None


def _not_beside_each_other(messages: Sequence[Message], order: Sequence[int]) -> list[set[int]]:
    """The answers in one set or two, so that what is written beside an answer of a set is of no other one."""
    sets: tuple[set[int], set[int]] = (set(), set())
    last = 1
    for position, index in enumerate(order):
        if messages[index].role != "assistant":
            continue
        beside = position > 0 and messages[order[position - 1]].role == "assistant"
        last = 1 - last if beside else 0
        sets[last].add(index)
    return [each for each in sets if each]


def _alone(
    chosen: set[int],
    messages: Sequence[Message],
    marked: Sequence[Message],
    order: Sequence[int],
    pieces: Sequence[str],
    marks: Marks,
    write: Write,
) -> dict[int, str] | None:
    """For each chosen answer what is written from the content before it to the end of its own.

    Found by writing the chosen ones as they are, and marks for all others.
    """
    others, between = marks.split(
        write([messages[index] if index in chosen else mark for index, mark in enumerate(marked)])
    )
    if others != [index for index in order if index not in chosen]:
        return None
    written: dict[int, str] = {}
    before = 0
    for position, index in enumerate(order):
        if index not in chosen:
            before += 1
            continue
        after = pieces[position + 1]
        if not between[before].endswith(after):
            return None
        written[index] = between[before][: len(between[before]) - len(after)]
    return written
