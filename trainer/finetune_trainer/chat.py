"""From a conversation to tokens, and which of them count in the loss.

The whole conversation is rendered as text and tokenized once; what counts is a range of characters, found by position in the text and
never by a token's id: a pad token that equals the end-of-turn token, or an answer that quotes one, changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import jinja2
from transformers import PreTrainedTokenizerBase

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.generation import GenerationConfig, PromptFormat
from finetune_trainer.rows import Message, Row

Span = tuple[int, int]
"""Start and end of a range of characters."""
Task = Literal["causal_lm", "instruction_tuning"]

_PROBE = (Message("user", "Ping?"), Message("assistant", "Pong."))


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as tokens."""

    input_ids: list[int]
    trained: list[bool]
    """True on tokens that count in the loss."""


class Rendering(Protocol):
    """How conversations are written for a model."""

    def render(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The text of a conversation, and where in it the assistant's turns are, each with its end-of-turn text.

        Raises ValueError with the reason when the conversation cannot be written.
        """

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text that asks the model to go on as the assistant."""


class ChatFormat:
    """Encodes rows for one tokenizer and task."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, rendering: Rendering, task: Task, warnings: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._rendering = rendering
        self._task = task
        self.warnings = tuple(warnings)

    def encode(self, row: Row) -> Encoded:
        """A row as tokens: all of them count for causal_lm, the assistant's turns with their end of turn for instruction_tuning.

        Raises FineTuneError (InvalidData) with the reason; the caller knows the file.
        """
        try:
            text, spans = self._rendering.render(row.messages)
        except ValueError as error:
            raise FineTuneError(FailureClass.INVALID_DATA, str(error)) from error
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = cast("list[int]", encoded["input_ids"])
        if len(ids) > 1 and ids[0] == ids[1] == self._tokenizer.bos_token_id:
            twice = f"begins with {self._tokenizer.bos_token!r} twice; take it out of the first message or of prompt_format"
            raise FineTuneError(FailureClass.INVALID_DATA, twice)
        if self._task == "causal_lm":
            return Encoded(ids, [True] * len(ids))
        return Encoded(ids, _inside(cast("list[Span]", encoded["offset_mapping"]), spans))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids that ask for an answer."""
        return cast("list[int]", self._tokenizer(self._rendering.prompt(messages), add_special_tokens=False)["input_ids"])


def chat_format(tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None, task: Task, model: str) -> ChatFormat:
    """The format of `prompt_format` if there is one, else of the tokenizer's chat template.

    Raises FineTuneError (InvalidSpec) when there is neither, and when the tokenizer cannot say which characters its tokens are.
    """
    if not tokenizer.is_fast:
        reason = "its tokenizer does not say which characters a token stands for; use a model with a tokenizer.json"
        raise FineTuneError(FailureClass.INVALID_SPEC, f"spec.model_id: {model}: {reason}")
    if generation_config is not None and generation_config.prompt_format is not None:
        return ChatFormat(tokenizer, FormatRendering(generation_config.prompt_format), task)
    if not tokenizer.chat_template:
        missing = f"is needed, since the tokenizer of {model} has no chat template"
        raise FineTuneError(FailureClass.INVALID_SPEC, f"spec.generation_config.prompt_format: {missing}")
    rendering = TemplateRendering(tokenizer)
    endless = task == "instruction_tuning" and not rendering.end_of_turn
    warning = f"the chat template of {model} writes nothing after an answer: the model will not learn to stop"
    return ChatFormat(tokenizer, rendering, task, [warning] if endless else [])


class TemplateRendering:
    """The tokenizer's chat template.

    Where an assistant's turn begins is where the text of the messages before it ends, once the template asks for an answer. Its end is
    the end of its content and of what the template writes there to end a turn, without the white space after that.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.end_of_turn = self._end_of_turn()

    def render(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The conversation as the template writes it."""
        text = self._apply(messages)
        spans = []
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            prefix = self._apply(messages[:index], ask=True)
            if not text.startswith(prefix):
                raise ValueError(
                    f"messages[{index}]: the model's chat template writes the messages before it differently when others follow; "
                    "give the format in spec.generation_config.prompt_format"
                )
            spans.append((len(prefix), self._end(text, message.content, len(prefix), index)))
        return text, spans

    def prompt(self, messages: Sequence[Message]) -> str:
        """The conversation, and the start of an answer."""
        return self._apply(messages, ask=True)

    def _end(self, text: str, content: str, start: int, index: int) -> int:
        for written in (content, content.strip()):
            found = text.find(written, start)
            if found >= 0:
                end = found + len(written)
                return end + len(self.end_of_turn) if text.startswith(self.end_of_turn, end) else end
        raise ValueError(
            f"messages[{index}].content: the model's chat template changes it; give the format in spec.generation_config.prompt_format"
        )

    def _end_of_turn(self) -> str:
        """What the template writes after an answer, learnt from a conversation of two messages."""
        try:
            text = self._apply(_PROBE)
        except ValueError:  # a template may insist on a system message; its rows will say so
            return ""
        answer = _PROBE[1].content
        return text[text.rfind(answer) + len(answer) :].rstrip()

    def _apply(self, messages: Sequence[Message], *, ask: bool = False) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return cast("str", self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask))
        except jinja2.TemplateError as error:
            raise ValueError(f"the model's chat template refuses this conversation: {error}") from error


class FormatRendering:
    """LLMForge's `prompt_format`: a text for each role, in which `{instruction}` stands for the content."""

    def __init__(self, prompt_format: PromptFormat) -> None:
        self._format = prompt_format
        self._before_answer, _, after_answer = prompt_format.assistant.partition("{instruction}")
        self._end_of_turn = len(after_answer.rstrip())

    def render(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The conversation as RayLLM's PromptFormat writes it; an assistant's turn is its content and what follows it in the format."""
        turns, system = self._split(messages)
        parts = [self._format.bos, "" if self._format.system_in_user else self._system_text(system)]
        spans = []
        length = len(parts[0]) + len(parts[1])
        for index, turn in enumerate(turns):
            content = self._content(turn.content)
            if turn.role == "user":
                written = self._user_text(content, system if index == 0 else None)
            else:
                written = _fill(self._format.assistant, instruction=content)
                start = length + len(self._before_answer)
                spans.append((start, start + len(content) + self._end_of_turn))
            parts.append(written)
            length += len(written)
        return "".join(parts), spans

    def prompt(self, messages: Sequence[Message]) -> str:
        """The conversation and `trailing_assistant`."""
        return self.render(messages)[0] + self._format.trailing_assistant

    def _split(self, messages: Sequence[Message]) -> tuple[list[Message], str]:
        """The turns, and the content of the system message or of its default."""
        turns = [message for message in messages if message.role != "system"]
        system = next((message.content for message in messages if message.role == "system"), self._format.default_system_message)
        if self._format.system_in_user and turns[0].role != "user":
            raise ValueError("messages[0].role: must be user, since prompt_format puts the system message into the first user message")
        return turns, self._content(system)

    def _system_text(self, system: str) -> str:
        wanted = system or self._format.add_system_tags_even_if_message_is_empty
        return _fill(self._format.system, instruction=system) if wanted else ""

    def _user_text(self, content: str, system: str | None) -> str:
        """A user's turn; `system` is given for the first one, and stands in it where the format says so."""
        inside = "" if system is None else self._system_text(system)
        return _fill(self._format.user, instruction=content, system=inside)

    def _content(self, content: str) -> str:
        return content.strip() if self._format.strip_whitespace else content


def _fill(template: str, **values: str) -> str:
    """The template with its placeholders filled in one pass: what is filled in may itself contain braces."""
    return re.sub(r"\{(instruction|system)\}", lambda match: values.get(match[1], match[0]), template)


def _inside(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Which tokens have a character in one of the spans; both are in the order of the text.

    A token that a span cuts counts: in sentencepiece vocabularies a turn's first word begins with the blank before it.
    """
    inside = []
    remaining = list(reversed(spans))
    for start, end in offsets:
        while remaining and remaining[-1][1] <= start:
            remaining.pop()
        inside.append(bool(remaining) and start < end and end > remaining[-1][0])
    return inside
