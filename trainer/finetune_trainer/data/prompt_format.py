"""Writes conversations with LLMForge's `prompt_format`.

It has a text for each role, in which `{instruction}` stands for the content.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.generation import PromptFormat
from finetune_trainer.data.rendering import RenderingError, Span
from finetune_trainer.data.rows import Message

_NO_CONTENT = "\0"
"""Stands in for a message's content. YAML cannot contain this character, so no format does."""


class FormatRendering:
    """Writes conversations by the rules of RayLLM's `PromptFormat.generate_prompt`.

    An answer is its content and what `assistant` writes after it, without trailing white space.
    """

    def __init__(self, prompt_format: PromptFormat) -> None:
        self._format = prompt_format
        around = prompt_format.assistant.format(instruction=_NO_CONTENT)
        after_answer = around.rpartition(_NO_CONTENT)[2]
        self._before_answer = around.index(_NO_CONTENT)
        self._white_space_after_answer = len(after_answer) - len(after_answer.rstrip())
        self._end_of_turn = after_answer.rstrip()

    @property
    def end_of_turn(self) -> str:
        """What `assistant` writes after an answer, without trailing white space."""
        return self._end_of_turn

    def text(self, messages: Sequence[Message]) -> str:
        """The whole conversation."""
        return self.answers(messages)[0]

    def answers(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The whole conversation, and the spans of its answers."""
        return self._write(messages, system_in_last_user=False)

    def prompt(self, messages: Sequence[Message]) -> str:
        """The conversation, followed by `trailing_assistant`."""
        text, _ = self._write(messages, system_in_last_user=self._format.system_in_last_user)
        return text + self._format.trailing_assistant

    def _write(self, messages: Sequence[Message], *, system_in_last_user: bool) -> tuple[str, list[Span]]:
        system = self._system(messages)
        turns = [message for message in messages if message.role != "system"]
        users = [index for index, turn in enumerate(turns) if turn.role == "user"]
        if system and self._format.system_in_user and not users:
            raise RenderingError(
                "messages: have no user message to put the system message into, as"
                " prompt_format.system_in_user asks"
            )
        text = self._format.bos if self._format.system_in_user else self._format.bos + system
        spans = []
        for index, turn in enumerate(turns):
            content = self._content(turn.content)
            if turn.role == "user":
                has_system = index == (users[-1] if system_in_last_user else users[0])
                text += self._format.user.format(instruction=content, system=system if has_system else "")
            else:
                start = len(text) + self._before_answer
                text += self._format.assistant.format(instruction=content)
                spans.append((start, len(text) - self._white_space_after_answer))
        return text, spans

    def _system(self, messages: Sequence[Message]) -> str:
        """The text of the system message or, without one, of the default; empty when neither is written."""
        given = next(
            (message.content for message in messages if message.role == "system"),
            self._format.default_system_message,
        )
        content = self._content(given)
        if not content and not self._format.add_system_tags_even_if_message_is_empty:
            return ""
        return self._format.system.format(instruction=content)

    def _content(self, content: str) -> str:
        return content.strip() if self._format.strip_whitespace else content
