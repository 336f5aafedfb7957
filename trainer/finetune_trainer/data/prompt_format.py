"""Writes conversations with LLMForge's `prompt_format`.

It has a text for each role, in which `{instruction}` stands for the content.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import Formatter

from finetune_api.generation import PromptFormat
from finetune_trainer.data.objects import JsonObject
from finetune_trainer.data.rendering import RenderingError, Span
from finetune_trainer.data.rows import Message

_NO_CONTENT = "\0"
"""Stands in for a message's content. YAML cannot contain this character, so no format does."""


_NO_TOOLS = (
    "{where}: prompt_format writes no tools and none of their calls; leave it out, where the model's own chat"
    " template does, or leave such rows out"
)


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
    def chat_template(self) -> str:
        """A chat template that writes the same texts, for whoever uses the trained model."""
        return _chat_template(self._format)

    @property
    def end_of_turn(self) -> str:
        """What `assistant` writes after an answer, without trailing white space."""
        return self._end_of_turn

    def with_tools(self, tools: Sequence[JsonObject]) -> FormatRendering:  # noqa: ARG002
        """A format has no place for tools. Raises RenderingError."""
        raise RenderingError(_NO_TOOLS.format(where="tools"))

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
        for index, message in enumerate(messages):
            if message.tool_calls or message.role == "tool":
                raise RenderingError(_NO_TOOLS.format(where=f"messages[{index}]"))
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


_CHAT_TEMPLATE = """\
{%- set ns = namespace(given=DEFAULT_SYSTEM, found=false, first=none, last=none) -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' and not ns.found -%}
{%- set ns.given = message['content'] -%}
{%- set ns.found = true -%}
{%- elif message['role'] == 'user' -%}
{%- set ns.first = loop.index0 if ns.first is none else ns.first -%}
{%- set ns.last = loop.index0 -%}
{%- endif -%}
{%- endfor -%}
{%- set given = CONTENT_OF_SYSTEM -%}
{%- set system = SYSTEM if given or EVEN_IF_EMPTY else '' -%}
{{- BOS -}}
BEFORE_TURNS
{%- for message in messages -%}
{%- set content = CONTENT -%}
{%- if message['role'] == 'user' -%}
{{- USER -}}
{%- elif message['role'] == 'assistant' -%}
{{- ASSISTANT -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- TRAILING_ASSISTANT -}}
{%- endif -%}
"""
_SYSTEM_IN_USER = """\
{%- if system and ns.first is none -%}
{{- raise_exception('There is no user message to put the system message into.') -}}
{%- endif -%}
"""


def _chat_template(prompt_format: PromptFormat) -> str:
    """The format as a Jinja template, in the dialect of transformers."""
    in_user = prompt_format.system_in_user
    strip = " | trim" if prompt_format.strip_whitespace else ""
    last = "add_generation_prompt" if prompt_format.system_in_last_user else "false"
    has_system = f"loop.index0 == (ns.last if {last} else ns.first)"
    parts = {
        "DEFAULT_SYSTEM": _literal(prompt_format.default_system_message),
        "CONTENT_OF_SYSTEM": f"ns.given{strip}",
        "EVEN_IF_EMPTY": str(prompt_format.add_system_tags_even_if_message_is_empty).lower(),
        "BEFORE_TURNS\n": _SYSTEM_IN_USER if in_user else "{{- system -}}\n",
        "TRAILING_ASSISTANT": _literal(prompt_format.trailing_assistant),
        "BOS": _literal(prompt_format.bos),
        "CONTENT": f"message['content']{strip}",
        "SYSTEM": _expression(prompt_format.system, {"instruction": "given"}),
        "USER": _expression(
            prompt_format.user, {"instruction": "content", "system": f"(system if {has_system} else '')"}
        ),
        "ASSISTANT": _expression(prompt_format.assistant, {"instruction": "content"}),
    }
    # In one pass, since the texts of a format may hold these words too.
    return re.sub("|".join(parts), lambda part: parts[part[0]], _CHAT_TEMPLATE)


def _expression(text: str, fields: Mapping[str, str]) -> str:
    """A text of the format as a Jinja expression, with an expression for each placeholder."""
    parts = []
    for literal, field, _, _ in Formatter().parse(text):
        if literal:
            parts.append(_literal(literal))
        if field is not None:
            parts.append(fields[field])
    return " ~ ".join(parts) or "''"


def _literal(text: str) -> str:
    """A text as a literal of Jinja, which normalises line breaks that are not escaped."""
    escapes = {"\\": r"\\", "'": r"\'", "\n": r"\n", "\r": r"\r"}
    return "'" + "".join(escapes.get(character, character) for character in text) + "'"
