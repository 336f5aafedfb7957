"""The forms of rows, by the names of their keys: what people's files and the hub's data sets have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Form:
    """A form of rows."""

    words: str
    """For people; empty for the forms that need no word."""
    needed: tuple[str, ...]
    """Keys that each row has."""
    others: tuple[str, ...] = ()
    """Keys that a row may have besides, and that mean something."""

    def __str__(self) -> str:
        return " and ".join(self.needed)

    @property
    def keys(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.needed, *self.others)


MESSAGES = Form("", ("messages",), ("tools",))
CONVERSATIONS = Form("of ShareGPT's form (conversations)", ("conversations",), ("system", "tools"))
INSTRUCTION = Form(
    "of Alpaca's form (instruction, input, output)",
    ("instruction", "output"),
    ("input", "system", "history"),
)
COMPLETION = Form("a prompt and its completion (prompt, completion)", ("prompt", "completion"), ("tools",))
TEXT = Form("plain text (text)", ("text",))
FORMS = (MESSAGES, CONVERSATIONS, INSTRUCTION, COMPLETION, TEXT)
"""Those that a row can be told by."""
PAIR = Form("", ("chosen", "rejected"), ("prompt",))
"""That of preference tuning, where no other one is known."""
