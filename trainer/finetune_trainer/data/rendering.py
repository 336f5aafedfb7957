"""The interface of chat templates and prompt formats, which write conversations as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from finetune_trainer.data.objects import JsonObject
from finetune_trainer.data.rows import Message

Span = tuple[int, int]
"""A range of characters in a text: its start and its end."""


class RenderingError(Exception):
    """A conversation cannot be written. The message says where, what is wrong and what would be right."""


class Rendering(Protocol):
    """A way to write conversations for a model. All methods may raise RenderingError."""

    @property
    def chat_template(self) -> str | None:
        """The chat template of a trained model; None when it is its tokenizer's own."""

    @property
    def end_of_turn(self) -> str:
        """The text that follows every answer, without trailing white space; may be empty."""

    def with_tools(self, tools: Sequence[JsonObject]) -> Rendering:
        """The same, where these tools are said to be there."""

    def text(self, messages: Sequence[Message]) -> str:
        """The whole conversation."""

    def answers(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The whole conversation, and the spans of the assistant's turns in it, in order.

        A span includes the text that ends the turn.
        """

    def prompt(self, messages: Sequence[Message]) -> str:
        """The prompt to which the model answers as the assistant."""
