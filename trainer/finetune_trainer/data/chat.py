"""Turns conversations into tokens, and marks those that count in the loss.

The whole conversation is written as text and tokenized once. The answers are ranges of characters in that
text. They are never looked for by token id, so it does no harm when the pad token equals the end-of-turn
token or when an answer quotes one.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Literal, cast

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.generation import GenerationConfig
from finetune_trainer.data.answer_ends import stops, token_that_ends, tokens_after_an_answer
from finetune_trainer.data.chat_template import TemplateRendering
from finetune_trainer.data.objects import JsonObject
from finetune_trainer.data.prompt_format import FormatRendering
from finetune_trainer.data.rendering import Rendering, RenderingError, Span
from finetune_trainer.data.rows import Message, Row, Text
from finetune_trainer.data.tools import name_of_tool

Task = Literal["causal_lm", "instruction_tuning"]

_QUESTION = "Ping?"


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenized row."""

    input_ids: list[int]
    trained: list[bool]
    """For each token, whether it counts in the loss."""
    left_out: bool = False
    """Whether something of the answers is not in the text."""


class ChatFormat:
    """Tokenizes rows for one model and task.

    `source` names what writes the text, `ends` are the tokens at which generation must stop, and `answers`
    those of which an answer is one, if that is all that it is.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        rendering: Rendering,
        task: Task,
        source: str,
        *,
        ends: Sequence[int] = (),
        warnings: Sequence[str] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._rendering = rendering
        self._task = task
        self.source = source
        self.ends = tuple(ends)
        self.answers: tuple[int, ...] = ()
        self.warnings = tuple(warnings)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """What makes tokens of text."""
        return self._tokenizer

    @property
    def chat_template(self) -> str | None:
        """The chat template of a model trained on this format; None when it is the tokenizer's own."""
        return self._rendering.chat_template

    def encode(self, row: Row | Text) -> Encoded:
        """Tokenizes a row, and marks the tokens that count in the loss.

        For causal_lm all tokens count; for instruction_tuning the assistant's turns do, each with the text
        that ends it, but for those of weight 0. Of a prompt and its completion, what follows the tokens that
        the prompt has by itself counts, as in TRL's SFTTrainer. Raises FineTuneError (InvalidData) with the
        reason, but without file and line.
        """
        if isinstance(row, Text):
            return self._encode_text(row)
        completes = row.prompt is not None and self._task == "instruction_tuning"
        try:
            rendering = self._rendering.with_tools(row.tools) if row.tools else self._rendering
            text, answers = (
                (rendering.text(row.messages), None) if completes else self._written(rendering, row.messages)
            )
            prompt = self.prompt(row.messages[: row.prompt], row.tools) if completes else []
        except RenderingError as error:
            raise FineTuneError(FailureClass.INVALID_DATA, str(error)) from error
        unwritten = _unwritten_tools(text, row)
        if unwritten:
            what = f"is not in the text, since {self.source} does not write it; leave such rows out"
            raise FineTuneError(FailureClass.INVALID_DATA, *(f"{where}: {what}" for where in unwritten))
        left_out = not _says_all(text, answers, row.messages)
        tokens = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = cast("list[int]", tokens["input_ids"])
        if len(ids) > 1 and ids[0] == ids[1] == self._tokenizer.bos_token_id:
            twice = (
                f"the text begins with {self._tokenizer.bos_token} twice; take it out of the first message or"
                " of prompt_format"
            )
            raise FineTuneError(FailureClass.INVALID_DATA, f"messages: {twice}")
        if completes:
            return Encoded(ids, _after(prompt, ids), left_out)
        if answers is None:
            return Encoded(ids, [True] * len(ids), left_out)
        return Encoded(ids, inside(cast("list[Span]", tokens["offset_mapping"]), answers), left_out)

    def token(self, token_id: int) -> str:
        """A token as text."""
        return cast("str", self._tokenizer.decode([token_id]))

    def answered_with(self, tokens: Sequence[int]) -> ChatFormat:
        """The same format, where an answer is one of these tokens, and nothing more."""
        copied = copy(self)
        copied.answers = tuple(tokens)
        return copied

    def prompt(self, messages: Sequence[Message], tools: Sequence[JsonObject] = ()) -> list[int]:
        """The token ids of a prompt: the conversation, and what makes the model answer."""
        rendering = self._rendering.with_tools(tools) if tools else self._rendering
        return cast(
            "list[int]",
            self._tokenizer(rendering.prompt(messages), add_special_tokens=False, verbose=False)["input_ids"],
        )

    def _encode_text(self, row: Text) -> Encoded:
        """The tokens of a text and of the token that ends it, with those that the tokenizer puts around it.

        As in TRL's SFTTrainer, so a prompt is a text of its own: what follows the tokens that both begin
        with is the completion.
        """
        end = self._tokenizer.eos_token
        if end is None:
            what = "the tokenizer has no token that ends a text (eos_token); give rows with messages"
            raise FineTuneError(FailureClass.INVALID_DATA, what)
        ids = self._ids(row.text if row.text.endswith(end) else row.text + end)
        if self._task != "instruction_tuning":
            return Encoded(ids, [True] * len(ids))
        return Encoded(ids, _after(self._ids(row.prompt), ids))

    @property
    def only_texts(self) -> bool:
        """Whether no conversations can be written, and rows are texts."""
        return isinstance(self._rendering, NoRendering)

    def text_ids(self, text: str) -> list[int]:
        """The tokens of a text that goes on, with those that the tokenizer puts before it."""
        return self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return cast("list[int]", self._tokenizer(text, verbose=False)["input_ids"])

    def control_tokens(self, row: Row | Text) -> list[str]:
        """The control tokens that stand in the contents of a row, where the row is not to write them."""
        if self._control is None or isinstance(row, Text):
            return []
        return [token for message in row.messages for token in self._control.findall(message.content)]

    @cached_property
    def _control(self) -> re.Pattern[str] | None:
        """Finds control tokens; None where there are none, or where it is the rows that write them.

        A prompt_format may leave that to rows all of which counts.
        """
        if self._task == "causal_lm" and isinstance(self._rendering, FormatRendering):
            return None
        added = self._tokenizer.added_tokens_decoder.values()
        names = {*self._tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True)))) if names else None

    def _written(self, rendering: Rendering, messages: Sequence[Message]) -> tuple[str, list[Span] | None]:
        """The conversation as text, and the spans that count in it, or None when all of it counts."""
        if self._task == "causal_lm":
            return rendering.text(messages), None
        text, spans = rendering.answers(messages)
        answers = [message for message in messages if message.role == "assistant"]
        if all(answer.trained for answer in answers):
            return text, spans
        if len(spans) != len(answers):
            raise RenderingError(
                f"messages: {self.source} marks {len(spans)} answers, and the row has {len(answers)}, so it"
                " cannot be told which of them has weight 0"
            )
        return text, [span for span, answer in zip(spans, answers, strict=True) if answer.trained]


class NoRendering:
    """Of a tokenizer that writes no conversations, for rows that are texts. It raises RenderingError."""

    chat_template = None
    end_of_turn = ""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def with_tools(self, tools: Sequence[JsonObject]) -> NoRendering:  # noqa: ARG002
        """The same."""
        return self

    def text(self, messages: Sequence[Message]) -> str:  # noqa: ARG002
        """Raises RenderingError."""
        raise RenderingError(self._reason)

    def answers(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:  # noqa: ARG002
        """Raises RenderingError."""
        raise RenderingError(self._reason)

    prompt = text


def text_format(tokenizer: PreTrainedTokenizerBase, task: Task, model: str, reason: str) -> ChatFormat:
    """The format of a job whose rows are texts; `reason` says why it can write no conversations."""
    end = tokenizer.eos_token_id
    ends = [end] if isinstance(end, int) else []
    return ChatFormat(tokenizer, NoRendering(reason), task, f"the tokenizer of {model}", ends=ends)


def chat_format(
    tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None, task: Task, model: str
) -> ChatFormat:
    """The chat format of a job: its `prompt_format` if it has one, else the tokenizer's chat template.

    Raises FineTuneError (InvalidSpec) when there is neither, when only answers count and the template cannot
    write one, and when the tokenizer does not report which characters its tokens stand for.
    """
    if not tokenizer.is_fast:
        reason = (
            "its tokenizer does not say which characters a token stands for;"
            " use a model with a tokenizer.json"
        )
        raise FineTuneError(FailureClass.INVALID_SPEC, f"spec.model_id: {model}: {reason}")
    prompt_format = generation_config.prompt_format if generation_config is not None else None
    try:
        rendering: Rendering = (
            TemplateRendering(tokenizer, model) if prompt_format is None else FormatRendering(prompt_format)
        )
    except ValueError as error:
        missing = f"is needed, since the tokenizer of {model} has no chat template of its own"
        raise FineTuneError(
            FailureClass.INVALID_SPEC, f"spec.generation_config.prompt_format: {missing}"
        ) from error
    source = (
        f"the chat template of {model}"
        if prompt_format is None
        else "spec.generation_config.prompt_format.assistant"
    )
    if task == "causal_lm" and not _writes_questions(rendering):
        what = f"is needed, since {source} cannot be read or leaves out what is said"
        raise FineTuneError(FailureClass.INVALID_SPEC, f"spec.generation_config.prompt_format: {what}")
    try:
        end_of_turn = rendering.end_of_turn
    except RenderingError as error:
        if task == "causal_lm":
            end_of_turn = ""
        else:
            needed = f"is needed, since a question and an answer cannot be written without it; {error}"
            raise FineTuneError(
                FailureClass.INVALID_SPEC, f"spec.generation_config.prompt_format: {needed}"
            ) from error
    warnings = []
    if not end_of_turn and task == "instruction_tuning":
        warnings.append(f"{source}: nothing ends an answer, so the model does not learn where to stop")
    sequences = (generation_config.stopping_sequences if generation_config is not None else None) or []
    ends, unending = stops(tokenizer, sequences)
    warnings += [_no_end(tokenizer, each, "spec.generation_config.stopping_sequences") for each in unending]
    end = token_that_ends(tokenizer, end_of_turn)
    if end is not None:
        ends = [end, *ends]
    elif end_of_turn:
        warnings.append(_no_end(tokenizer, end_of_turn, source))
    return ChatFormat(tokenizer, rendering, task, source, ends=list(dict.fromkeys(ends)), warnings=warnings)


def _no_end(tokenizer: PreTrainedTokenizerBase, text: str, where: str) -> str:
    count = len(tokens_after_an_answer(tokenizer, text))
    return (
        f"{where}: {text!r} is {count} tokens, and generation stops at single ones: give `generate`"
        f" stop_strings=[{text!r}] and the tokenizer, or end answers with a token of the tokenizer"
    )


def inside(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """For each token, whether it overlaps one of the spans; both are in the order of the text.

    A token that is only partly inside a span counts: in sentencepiece vocabularies the first word of a
    turn begins with the blank before it. A token of no characters inside a span counts too: byte-level
    vocabularies may leave blanks out of their tokens' offsets.
    """
    starts = [start for start, _ in offsets]
    ends = [end for _, end in offsets]
    marked = [False] * len(offsets)
    for span_start, span_end in spans:
        first, last = bisect_right(ends, span_start), bisect_left(starts, span_end)
        marked[first:last] = [True] * (last - first)
    return marked


def _after(prompt: Sequence[int], ids: Sequence[int]) -> list[bool]:
    """For each of `ids`, whether it comes after those with which both begin."""
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, ids, strict=False)))
    return [False] * alike + [True] * (len(ids) - alike)


def _unwritten_tools(text: str, row: Row) -> list[str]:
    """Where in a row that is said which is of tools and not in its text."""
    whole = "".join(text.split())

    def written(said: str) -> bool:
        forms = (said, json.dumps(said)[1:-1], json.dumps(said, ensure_ascii=False)[1:-1])
        return any("".join(form.split()) in whole for form in forms)

    unwritten = [
        f"tools[{index}]" for index, tool in enumerate(row.tools) if not written(name_of_tool(tool) or "")
    ]
    for index, message in enumerate(row.messages):
        if message.role == "tool" and not written(message.content):
            unwritten.append(f"messages[{index}].content")
        for call in message.tool_calls:
            function = cast("JsonObject", call["function"])
            arguments = cast("JsonObject", function["arguments"])
            if not all(map(written, (str(function["name"]), *arguments))):
                unwritten.append(f"messages[{index}].tool_calls")
    return list(dict.fromkeys(unwritten))


def _says_all(text: str, answers: Sequence[Span] | None, messages: Sequence[Message]) -> bool:
    """Whether all that the assistant says is in the text; white space aside, which templates put anywhere."""
    said = ["".join(message.content.split()) for message in messages if message.role == "assistant"]
    if answers is not None and len(answers) == len(said):
        written = ["".join(text[start:end].split()) for start, end in answers]
        return all(map(str.__contains__, written, said))
    whole = "".join(text.split())
    return all(each in whole for each in said)


def _writes_questions(rendering: Rendering) -> bool:
    """Whether a question is in its own text. What is refused for another reason is refused row by row."""
    try:
        return _QUESTION in rendering.text([Message("user", _QUESTION)])
    except RenderingError as error:
        return not isinstance(error.__cause__, TemplateSyntaxError)
