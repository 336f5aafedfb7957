"""Writes conversations with the chat template of a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from datetime import date
from functools import cached_property
from itertools import takewhile
from typing import NamedTuple, cast

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from finetune_trainer.data.alignment import PRIVATE_USE, Marks, Place, places
from finetune_trainer.data.objects import JsonObject
from finetune_trainer.data.rendering import RenderingError, Span
from finetune_trainer.data.rows import Message

_TODAY = date(2024, 7, 26)
"""The date that templates get as today's: the one that Llama 3.1's template falls back to."""
_STRFTIME_NOW = re.compile(r"""strftime_now\(\s*(?P<quote>["'])(?P<format>[^"']*)(?P=quote)\s*\)""")
_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Prompt(NamedTuple):
    """What a template writes after the content of a message."""

    asked: str
    """To have an answer."""
    unasked: str
    """Without asking for one."""

    @property
    def asks(self) -> bool:
        """Whether asking makes a difference: some templates ask only after a message, others never."""
        return self.asked != self.unasked


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
        self._tools: list[JsonObject] = []

    def with_tools(self, tools: Sequence[JsonObject]) -> TemplateRendering:
        """The same, where the template is given these definitions of tools."""
        copied = copy(self)
        copied._tools = list(tools)
        return copied

    def text(self, messages: Sequence[Message]) -> str:
        """The whole conversation."""
        return self._render(messages)[0]

    def answers(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The whole conversation, and the spans of its answers.

        Raises RenderingError also when the template makes it impossible to find where an answer begins.
        """
        text, spans = self._render(messages)
        if not self._tagged:
            spans = self._spans(messages, text)
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
        mark = chr(PRIVATE_USE.start)
        conversation = [
            Message("user", "Ping?"),
            Message("assistant", mark),
            Message("user", "Ping?"),
            Message("assistant", "Pong."),
        ]
        _, at_end = self._around(mark, conversation[:2])
        _, between = self._around(mark, conversation)
        ending = at_end.rstrip()
        # Some templates (Phi-3's) end a turn, and then the conversation. What both texts share ends a turn.
        return (
            ending if between.startswith(ending) else self._common_tokens(at_end, between).rstrip() or ending
        )

    def _spans(self, messages: Sequence[Message], text: str) -> list[Span]:
        """The spans of the answers in the text, without what ends their turns."""
        if any(message.tool_calls for message in messages):
            # A call belongs to the answer, and is written after its content.
            return [
                self._span(messages, text, i) for i, each in enumerate(messages) if each.role == "assistant"
            ]
        marks = Marks.beside(messages, text)
        found = places(messages, text, marks, self.text)
        indices = [index for index, message in enumerate(messages) if message.role == "assistant"]
        if found is None:
            return [self._span(messages, text, index) for index in indices]
        asked = self._asked(messages, found, marks)
        spans = []
        for index in indices:
            place = found[index]
            begin = self._begin_of_turn(messages, text, index, place, asked[index], marks)
            if begin is None:
                raise self._asks_otherwise(index)
            spans.append((place.start + begin, place.end))
        return spans

    def _begin_of_turn(
        self,
        messages: Sequence[Message],
        text: str,
        index: int,
        place: Place,
        prompt: Prompt | None,
        marks: Marks,
    ) -> int | None:
        """How much of what stands in its place a prompt for an answer gives; None when it cannot be told."""
        written = text[place.start : place.end]
        after_question = index > 0 and messages[index - 1].role == "user"
        if prompt is not None and written.startswith(prompt.asked) and (index or prompt.asks):
            return len(prompt.asked)
        if after_question:
            return self._begin(written, place.before, prompt) if prompt is not None else None
        begin = self._begin_after_a_question(messages, written, index, marks)
        if begin is None and prompt is not None and written.startswith(prompt.asked):
            return len(prompt.asked)
        return begin

    def _asked(
        self, messages: Sequence[Message], found: dict[int, Place], marks: Marks
    ) -> dict[int, Prompt | None]:
        """For each answer what a prompt for it ends with; None when the template refuses to ask for it.

        It depends on the role of the message before. So of all answers after a message of the same role, the
        first and the last are asked for, and the others only if these two differ.
        """
        by_role: dict[str, list[int]] = {}
        for index in sorted(found):
            by_role.setdefault(messages[index - 1].role if index else "", []).append(index)
        asked: dict[int, Prompt | None] = {}
        for alike in by_role.values():
            ends = {
                index: self._ask(messages[:index], found[index].previous, marks)
                for index in {alike[0], alike[-1]}
            }
            same = ends[alike[0]] == ends[alike[-1]]
            for index in alike:
                asked[index] = (
                    ends[alike[0]] if same else self._ask(messages[:index], found[index].previous, marks)
                )
        return asked

    def _ask(self, messages: Sequence[Message], previous: int | None, marks: Marks) -> Prompt | None:
        """What a prompt ends with after the content of the message `previous`, which must be its last."""
        marked = marks.marked(messages)
        try:
            order, pieces = marks.split(self.prompt(marked))
        except RenderingError:
            return None
        unasked = ""
        with suppress(RenderingError):
            unasked = marks.split(self.text(marked))[1][-1]
        last = order[-1] if order else None
        return Prompt(pieces[-1], unasked) if last == previous else None

    def _begin(self, written: str, before: str, prompt: Prompt) -> int | None:
        """The length of that part of `written` which a prompt has given; None when it cannot be told.

        `before` is what is written before the content of any answer. Where a prompt has more than that, or
        other white space, as in templates that open a thought in it, an answer begins where its turn leaves
        the prompt.
        """
        if written.startswith(prompt.asked):
            return len(prompt.asked)
        alike = before.startswith(prompt.asked) or prompt.asked.startswith(before)
        if alike and written.startswith(before):
            shared = before
        else:
            shared = self._common_tokens(written if alike else before, prompt.asked)
            if not (alike or prompt.asked[len(shared) :].isspace()):
                return None
        return len(shared) if len(shared) > _shared_length(prompt.asked, prompt.unasked) else None

    def _begin_after_a_question(
        self, messages: Sequence[Message], written: str, index: int, marks: Marks
    ) -> int | None:
        """The same for an answer after no question, as if there were one.

        Conversations may begin with an answer, but few templates can write a prompt without a question.
        """
        asking = [*messages[:index], Message("user", "?"), *messages[index:]]
        marked = marks.marked(asking)
        prompt = self._ask(asking[: index + 1], index, marks)
        try:
            order, pieces = marks.split(self.text(marked))
            others, between = marks.split(
                self.text([*marked[: index + 1], asking[index + 1], *marked[index + 2 :]])
            )
        except RenderingError:
            return None
        if prompt is None or index + 1 not in order or index + 1 in others or index not in others:
            return None
        position = order.index(index + 1)
        turn = between[others.index(index) + 1].removesuffix(pieces[position + 1])
        begin = self._begin(turn, pieces[position], prompt)
        if begin is None or not written.endswith(turn[begin:]):
            return None
        return len(written) - len(turn[begin:])

    def _asks_otherwise(self, index: int) -> RenderingError:
        return RenderingError(
            f"messages[{index}]: the chat template of {self._model} asks for this answer with other text"
            " than it writes before it, so what to train on cannot be told; set"
            " spec.generation_config.prompt_format, which writes every turn alike"
        )

    def _span(self, messages: Sequence[Message], text: str, index: int) -> Span:
        """The span of one answer, found by writing the whole conversation again."""
        before, end = self._around_content(messages, text, index)
        try:
            prompt = Prompt(self.prompt(messages[:index]), self.text(messages[:index]))
        except RenderingError as error:
            raise self._asks_otherwise(index) from error
        begin = self._begin(text[:end], before, prompt)
        if begin is None:
            raise self._asks_otherwise(index)
        return begin, end

    def _around_content(self, messages: Sequence[Message], text: str, index: int) -> tuple[str, int]:
        """What is written before the content of a message, and where in the text its content ends.

        The end is found by putting a mark in place of the content, and looking at what follows the mark. The
        content itself cannot be searched for: templates strip it or cut thoughts from it, and a short one
        may occur elsewhere too.
        """
        mark = next(mark for mark in map(chr, PRIVATE_USE) if mark not in text)
        before, after = self._around(
            mark, [*messages[:index], Message("assistant", mark), *messages[index + 1 :]]
        )
        if not text.endswith(after):
            raise RenderingError(
                f"messages[{index}].content: changes how the chat template of {self._model} writes what"
                " follows, so what to train on cannot be told; set spec.generation_config.prompt_format,"
                " which writes every turn alike"
            )
        return before, len(text) - len(after)

    def _around(self, mark: str, messages: Sequence[Message]) -> tuple[str, str]:
        """The text before and after the answer whose content is `mark`."""
        before, found, after = self.text(messages).partition(mark)
        if not found:
            raise RenderingError(
                f"messages: the chat template of {self._model} leaves out what the assistant says"
            )
        return before, after

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
        turns = [_turn(message) for message in messages]
        try:
            rendered = render_jinja_template(
                conversations=[turns],
                tools=self._tools or None,  # type: ignore[arg-type]
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


def _turn(message: Message) -> JsonObject:
    """A message as templates take it."""
    calls: JsonObject = {"tool_calls": list(message.tool_calls)} if message.tool_calls else {}
    return {"role": message.role, "content": message.content, **calls, **dict(message.of_tool)}


def _with_fixed_date(template: str) -> str:
    """The template with a fixed date in place of today's.

    A run that is resumed tomorrow must train on the same tokens as today. Llama 3.2's template, among others,
    writes the current date.
    """
    return _STRFTIME_NOW.sub(lambda call: repr(_TODAY.strftime(call["format"])), template)


def _shared_length(first: str, second: str) -> int:
    """The number of characters with which both texts begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
