"""The questions of `sample_prompts`: texts, or what stands before the last answer of validation rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.chat import ChatFormat
from finetune_trainer.data.labels import parse_labelled
from finetune_trainer.data.objects import JsonObject
from finetune_trainer.data.pairs import parse_pairs
from finetune_trainer.data.places import Places
from finetune_trainer.data.reading import first_rows, rows_at
from finetune_trainer.data.rendering import RenderingError
from finetune_trainer.data.rows import Lines, Message, Row, Text, parse_rows


@dataclass(frozen=True)
class Question:
    """A conversation or a text that the model is to go on with."""

    prompt: str
    """What is asked last in it, as it was written."""
    expected: str | None
    """What the row answers; None of a text of the spec."""
    input_ids: tuple[int, ...]
    """All of it as tokens, with what makes the model answer."""


@dataclass(frozen=True)
class _Asked:
    """What is asked, before it is tokens."""

    where: str
    messages: tuple[Message, ...] = ()
    text: str = ""
    """In place of messages."""
    expected: str | None = None
    tools: tuple[JsonObject, ...] = ()

    @property
    def prompt(self) -> str:
        """What is asked last."""
        if not self.messages:
            return self.text
        users = [message for message in self.messages if message.role == "user"]
        return (users or self.messages)[-1].content


@dataclass(frozen=True)
class HeldOut:
    """The first training rows that are held out for validation."""

    numbers: Sequence[int]
    """Those of their lines, in their order."""
    places: Places
    """Where these are."""


def questions(
    spec: FineTuneJobSpec, chat: ChatFormat, most: int | None, held_out: HeldOut | None = None
) -> tuple[list[Question], list[str]]:
    """The questions of a job, none without `sample_prompts`; and remarks about those that are left out.

    They are those that with an answer have more than the `most` tokens that the model knows, and texts that
    have no prompt. `held_out` are the validation rows where these have no path. Raises FineTuneError
    (InvalidData) where one cannot be written as text, and as reading the validation rows does.
    """
    found = []
    problems = []
    every = _asked(spec, chat, held_out)
    remarks = _too_few(spec, len(every))
    for asked in every:
        if not asked.prompt:
            remarks.append(f"{asked.where}: is text without a prompt; it is not asked")
            continue
        try:
            ids = chat.prompt(asked.messages, asked.tools) if asked.messages else chat.text_ids(asked.text)
        except RenderingError as error:
            problems.append(f"{asked.where}: {error}")
            continue
        if most is not None and len(ids) + spec.longest_sample > most:
            length = f"has {len(ids)} tokens, which with an answer are more than the model's {most}"
            remarks.append(f"{asked.where}: {length}; it is not asked")
            continue
        found.append(Question(asked.prompt, asked.expected, tuple(ids)))
    if problems:
        raise FineTuneError(FailureClass.INVALID_DATA, *problems)
    return found, remarks


def _too_few(spec: FineTuneJobSpec, there: int) -> list[str]:
    wanted = spec.sample_prompts
    if not isinstance(wanted, int) or there == wanted:
        return []
    return [f"spec.sample_prompts: {wanted} validation rows are to be asked, and there are {there}"]


def _asked(spec: FineTuneJobSpec, chat: ChatFormat, held_out: HeldOut | None) -> list[_Asked]:
    match spec.sample_prompts:
        case None:
            return []
        case int(count):
            return [_before_the_answer(place, row) for place, row in _first(spec, count, held_out)]
        case texts:
            named = [(f"spec.sample_prompts[{index}]", text) for index, text in enumerate(texts)]
            if chat.only_texts:
                return [_Asked(where, text=text) for where, text in named]
            return [_Asked(where, (Message("user", text),)) for where, text in named]


def _first(spec: FineTuneJobSpec, count: int, held_out: HeldOut | None) -> Sequence[tuple[str, Row | Text]]:
    """The first validation rows, each with its place."""
    if held_out is not None:
        rows = held_out.numbers[:count]
        return rows_at(held_out.places.inputs, rows, lambda lines: _rows(spec, lines))
    assert spec.valid_path is not None
    return first_rows(spec.valid_path, count, lambda lines: _rows(spec, lines))


def _rows(spec: FineTuneJobSpec, lines: Lines) -> Iterable[Row | Text]:
    """The rows in some lines, of pairs the preferred answers. What is no row is left out here."""
    if spec.trained_task == "preference_tuning":
        return [pair.chosen for pair in parse_pairs(lines, spec.columns).rows]
    if spec.classifier_config is not None:
        return parse_labelled(lines, spec.classifier_config.label_tokens, spec.columns).rows
    return parse_rows(lines, spec.trained_task, spec.columns).rows


def _before_the_answer(place: str, row: Row | Text) -> _Asked:
    """What stands before a row's last answer, and the answer; all of it where there is none."""
    if isinstance(row, Text):
        return _Asked(place, text=row.prompt, expected=row.text.removeprefix(row.prompt))
    answers = [index for index, message in enumerate(row.messages) if message.role == "assistant"]
    if not answers or answers[-1] == 0:
        return _Asked(place, row.messages, tools=row.tools)
    return _Asked(
        place,
        row.messages[: answers[-1]],
        expected=row.messages[answers[-1]].content,
        tools=row.tools,
    )
