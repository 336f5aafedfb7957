"""Writes conversations with the chat template of a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from functools import cached_property
from itertools import takewhile
from typing import cast

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from finetune_trainer.data.rendering import RenderingError, Span
from finetune_trainer.data.rows import Message

_TODAY = date(2024, 7, 26)
"""The date that templates get as today's: the one that Llama 3.1's template falls back to."""
_STRFTIME_NOW = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<format>[^"']*)(?P=quote)\s*\)""")
_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PRIVATE_USE = range(0xE000, 0xF900)
"""Characters without a meaning in Unicode, which no template treats in a special way."""


class TemplateRendering:
    """Writes conversations with the tokenizer's default chat template, and finds the answers in the text.

    If the template marks answers with `{% generation %}`, those marks are used. Otherwise an answer begins
    after the prompt, which is what the template writes for the messages before it with
    `add_generation_prompt`, and ends with its content. Either way the text that ends a turn belongs to the
    answer; white space after it does not.

    Raises ValueError when the tokenizer has no default chat template.
    """

    chat_template = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: str) -> None:
        template = tokenizer.get_chat_template()
        self._tokenizer = tokenizer
        self._model = model
        self._template = _with_fixed_date(template)
        self._tagged = bool(_GENERATION_TAG.search(template))

    def text(self, messages: Sequence[Message]) -> str:
        """The whole conversation."""
        return self._render(messages)[0]

    def answers(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The whole conversation, and the spans of its answers.

        Raises RenderingError also when the template makes it impossible to find where an answer begins.
        """
        text, spans = self._render(messages)
        if not self._tagged:
            spans = [
                self._answer(messages, text, index)
                for index, message in enumerate(messages)
                if message.role == "assistant"
            ]
        return text, [(start, self._with_end_of_turn(text, end)) for start, end in spans]

    def prompt(self, messages: Sequence[Message]) -> str:
        """The conversation, followed by the beginning of an answer."""
        return self._render(messages, ask=True)[0]

    @cached_property
    def end_of_turn(self) -> str:
        """What the template writes after an answer, without trailing white space.

        Found by writing a short conversation with the template.
        Raises RenderingError when the template cannot write a question and an answer.
        """
        mark = chr(_PRIVATE_USE.start)
        conversation = [
            Message("user", "Ping?"),
            Message("assistant", mark),
            Message("user", "Ping?"),
            Message("assistant", "Pong."),
        ]
        at_end = self._after(mark, conversation[:2])
        between = self._after(mark, conversation)
        ending = at_end.rstrip()
        # Some templates (Phi-3's) end a turn, and then the conversation. What both texts share ends a turn.
        return (
            ending if between.startswith(ending) else self._common_tokens(at_end, between).rstrip() or ending
        )

    def _answer(self, messages: Sequence[Message], text: str, index: int) -> Span:
        prompt = self.prompt(messages[:index])
        if not text.startswith(prompt):
            raise RenderingError(
                f"messages[{index}]: the chat template of {self._model} asks for this answer with other text"
                " than it writes before it, so what to train on cannot be told; set"
                " spec.generation_config.prompt_format, which writes every turn alike"
            )
        return len(prompt), self._end_of_content(messages, text, index)

    def _end_of_content(self, messages: Sequence[Message], text: str, index: int) -> int:
        """The position in the text at which the content of a message ends.

        It is found by putting a mark in place of the content, and looking at what follows the mark. The
        content itself cannot be searched for: templates strip it or cut thoughts from it, and a short one
        may occur elsewhere too.
        """
        mark = next(mark for mark in map(chr, _PRIVATE_USE) if mark not in text)
        after = self._after(mark, [*messages[:index], Message("assistant", mark), *messages[index + 1 :]])
        if not text.endswith(after):
            raise RenderingError(
                f"messages[{index}].content: changes how the chat template of {self._model} writes what"
                " follows, so what to train on cannot be told; set spec.generation_config.prompt_format,"
                " which writes every turn alike"
            )
        return len(text) - len(after)

    def _after(self, mark: str, messages: Sequence[Message]) -> str:
        """The text that follows the answer whose content is `mark`."""
        _, found, after = self.text(messages).partition(mark)
        if not found:
            raise RenderingError(
                f"messages: the chat template of {self._model} leaves out what the assistant says"
            )
        return after

    def _with_end_of_turn(self, text: str, end: int) -> int:
        return end + len(self.end_of_turn) if text.startswith(self.end_of_turn, end) else end

    def _common_tokens(self, first: str, second: str) -> str:
        """The longest common beginning of two texts that consists of whole tokens."""
        tokens = self._tokenizer(first, add_special_tokens=False, return_offsets_mapping=True)
        others = self._tokenizer(second, add_special_tokens=False)
        ends = [end for _, end in cast("list[Span]", tokens["offset_mapping"])]
        pairs = zip(
            cast("list[int]", tokens["input_ids"]), cast("list[int]", others["input_ids"]), strict=False
        )
        common = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        return first[: ends[common - 1]] if common else ""

    def _render(self, messages: Sequence[Message], *, ask: bool = False) -> tuple[str, list[Span]]:
        """The text, and the spans between the template's generation tags, if it has any."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            rendered = render_jinja_template(
                conversations=[turns],
                chat_template=self._template,
                return_assistant_tokens_mask=self._tagged,
                add_generation_prompt=ask,
                **self._tokenizer.special_tokens_map,  # type: ignore[arg-type]
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise RenderingError(
                f"messages: the chat template of {self._model} refuses them: {reason}"
            ) from error
        texts, tagged = cast("tuple[list[str], list[list[Span]]]", rendered)
        return texts[0], tagged[0] if self._tagged else []


def _with_fixed_date(template: str) -> str:
    """The template with a fixed date in place of today's.

    A run that is resumed tomorrow must train on the same tokens as today. Llama 3.2's template, among others,
    writes the current date.
    """
    return _STRFTIME_NOW.sub(lambda call: repr(_TODAY.strftime(call["format"])), template)
