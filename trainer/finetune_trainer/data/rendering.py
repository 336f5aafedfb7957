"""A conversation as text, and where in it the model's answers are: what a chat template and a prompt format both give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from finetune_trainer.data.rows import Message

Span = tuple[int, int]
"""Start and end of a range of characters."""


class RenderingError(Exception):
    """Why a conversation cannot be written: where in it, what is wrong, and what would be right."""


class Rendering(Protocol):
    """One way to write conversations for a model. All of it raises RenderingError."""

    @property
    def end_of_turn(self) -> str:
        """What follows an answer, without white space at its end; may be empty."""

    def text(self, messages: Sequence[Message]) -> str:
        """The whole conversation."""

    def answers(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The whole conversation, and its assistant's turns with the text that ends a turn, in the order of the text."""

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text that asks the model to go on as the assistant."""
