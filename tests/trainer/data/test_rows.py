from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.data.reading import read_rows
from finetune_trainer.data.rows import Message, Row, blocks, parse_rows
from finetune_trainer.storage.open import open_storage

QUESTION = {"role": "user", "content": "Ping?"}
ANSWER = {"role": "assistant", "content": "Pong."}
GOOD = json.dumps({"messages": [QUESTION, ANSWER]})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "train.jsonl"


def rows_in(file: Path, text: str | bytes, task: str = "instruction_tuning") -> list[Row]:
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_rows(str(file), task)


def remarks_on(file: Path, task: str = "instruction_tuning") -> list[str]:
    """The remarks about all lines of a file."""
    with file.open("rb") as stream:
        (lines,) = blocks(stream)
    return parse_rows(lines, task).remarks.words(str(file), "nobody")


def problems_in(file: Path, text: str | bytes, task: str = "instruction_tuning") -> list[str]:
    """The problems of a file, without its path in front."""
    with pytest.raises(FineTuneError) as raised:
        rows_in(file, text, task)
    assert raised.value.failure_class is FailureClass.INVALID_DATA
    assert all(problem.startswith(f"{file}:") for problem in raised.value.problems)
    return [problem.removeprefix(f"{file}:") for problem in raised.value.problems]


def row(*turns: object, **others: object) -> str:
    return json.dumps({"messages": turns, **others})


def turns_of(rows: Sequence[Row]) -> list[list[tuple[str, str]]]:
    return [[(message.role, message.content) for message in row.messages] for row in rows]


# Good rows


def test_a_row_is_a_line_with_messages(file: Path) -> None:
    assert rows_in(file, GOOD + "\n") == [Row(1, (Message("user", "Ping?"), Message("assistant", "Pong.")))]


def test_blank_lines_do_not_count_and_rows_keep_the_numbers_of_their_lines(file: Path) -> None:
    rows = rows_in(file, f"\n{GOOD}\n  \t\n\n{GOOD}\n\n")

    assert [row.line for row in rows] == [2, 5]


@pytest.mark.parametrize(
    "written",
    [GOOD, f"{GOOD}\n", f"{GOOD}\r\n", f"\ufeff{GOOD}\n", f"  {GOOD}  \n", f"\ufeff\r\n{GOOD}"],
    ids=["no-newline", "newline", "CRLF", "BOM", "blanks", "BOM-alone"],
)
def test_how_a_line_ends_and_a_file_begins_changes_nothing(file: Path, written: str) -> None:
    assert turns_of(rows_in(file, written)) == [[("user", "Ping?"), ("assistant", "Pong.")]]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0c", "\r"])
def test_only_a_newline_ends_a_row(file: Path, separator: str) -> None:
    content = f"one{separator}two"

    rows = rows_in(
        file, json.dumps({"messages": [{"role": "user", "content": content}, ANSWER]}, ensure_ascii=False)
    )

    assert rows[0].messages[0].content == content


def test_files_that_were_joined_may_have_a_bom_in_the_middle(file: Path) -> None:
    assert [row.line for row in rows_in(file, f"\ufeff{GOOD}\n\ufeff{GOOD}\n")] == [1, 2]


def test_a_system_message_is_moved_to_the_front(file: Path) -> None:
    rows = rows_in(file, row(QUESTION, {"role": "system", "content": "Be brief."}, ANSWER))

    assert turns_of(rows) == [[("system", "Be brief."), ("user", "Ping?"), ("assistant", "Pong.")]]


def test_causal_lm_needs_no_answer(file: Path) -> None:
    assert turns_of(rows_in(file, row(QUESTION), task="causal_lm")) == [[("user", "Ping?")]]


def test_rows_are_read_from_an_object_store(object_path: str) -> None:
    open_storage(object_path).write_text("train.jsonl", GOOD)
    path = object_path.replace("?", "/train.jsonl?") if "?" in object_path else f"{object_path}/train.jsonl"

    rows = read_rows(path, "instruction_tuning")

    assert turns_of(rows) == [[("user", "Ping?"), ("assistant", "Pong.")]]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
def test_every_text_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, contents: list[str], ascii_only: bool
) -> None:
    turns = [{"role": "user", "content": content} for content in contents]
    line = json.dumps({"messages": turns}, ensure_ascii=ascii_only)

    rows = rows_in(tmp_path_factory.getbasetemp() / "any.jsonl", f"{line}\n{line}\n", task="causal_lm")

    assert turns_of(rows) == [[("user", content) for content in contents]] * 2


# Files


@pytest.mark.parametrize("text", ["", "\n \n\t\n", "\ufeff", "\r\n"])
def test_an_empty_file_is_an_error(file: Path, text: str) -> None:
    assert "messages" in problems_in(file, text)[0]


def test_a_missing_file_is_an_error(file: Path) -> None:
    with pytest.raises(FineTuneError, match="no such file") as raised:
        read_rows(str(file), "instruction_tuning")

    assert raised.value.failure_class is FailureClass.INVALID_DATA
    assert raised.value.problems[0].startswith(f"{file}: ")


def test_a_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FineTuneError, match="is a directory") as raised:
        read_rows(str(tmp_path), "instruction_tuning")

    assert raised.value.failure_class is FailureClass.INVALID_DATA


# Bad rows

NO_MESSAGES = {
    "an-object-cut-off": ("{", "1: is not JSON", "column 2"),
    "a-list-cut-off": ('{"messages": [}', "1: is not JSON", "column 15"),
    "two-objects-in-a-line": (f"{GOOD} {GOOD}", "1: is not JSON", f"column {len(GOOD) + 2}"),
    "nested-too-deeply": ("[" * 100_000, "1: ", "JSON"),
    "a-huge-number": (f'{{"n": {"9" * 5000}}}', "1: ", "JSON"),
    "a-text": ('"text"', "1: must be an object", "'text'"),
    "a-list": (f"[{GOOD}]", "1: must be an object", "a list"),
    "null": ("null", "1: must be an object", "null"),
    "another-kind-of-row": (
        '{"question": "a", "answer": "b"}',
        "1: messages: is missing; the row has question, answer",
        "spec.data_columns",
    ),
    "no-messages": ('{"messages": []}', "1: messages: must be a list", "empty"),
    "messages-that-are-text": ('{"messages": "hi"}', "1: messages: must be a list", "'hi'"),
    "not-UTF-8": (b'{"messages": "\xff"}', "1: byte 15", "UTF-8"),
    "UTF-16": (GOOD.encode("utf-16"), "1: byte 1 ", "UTF-8"),
    "messages-given-twice": ('{"messages": [], "messages": []}', "1: messages: is given twice", "keep one"),
    "a-role-given-twice": (
        '{"messages": [{"role": "user", "role": "system", "content": "x"}]}',
        "1: role: is given twice",
        "keep one",
    ),
}


@pytest.mark.parametrize(("text", "where", "what"), NO_MESSAGES.values(), ids=NO_MESSAGES)
def test_a_line_that_holds_no_messages(file: Path, text: str | bytes, where: str, what: str) -> None:
    problems = problems_in(file, text)

    assert len(problems) == 1
    assert problems[0].startswith(where)
    assert what in problems[0]


BAD_TURNS = [
    ("hello", "messages[1]: must be an object", "'hello'"),
    ({"content": "x"}, "messages[1].role: must be system, user, assistant or tool", "missing"),
    (
        {"role": "human", "content": "x"},
        "messages[1].role: must be system, user, assistant or tool",
        "'human'",
    ),
    (
        {"role": "Assistant", "content": "x"},
        "messages[1].role: must be system, user, assistant or tool",
        "'Assistant'",
    ),
    (
        {"role": ["user"], "content": "x"},
        "messages[1].role: must be system, user, assistant or tool",
        "a list",
    ),
    ({"role": "assistant"}, "messages[1].content: must be a text", "missing"),
    ({"role": "assistant", "content": None}, "messages[1].content: must be a text", "null"),
    ({"role": "assistant", "content": 7}, "messages[1].content: must be a text", "7"),
    ({"role": "assistant", "content": ""}, "messages[1].content: is empty", ""),
    ({"role": "assistant", "content": " \n\t\u3000"}, "messages[1].content: is empty", ""),
    ({"role": "assistant", "content": "half: \ud83d"}, "messages[1].content: ", "half of a"),
    (
        {"role": "user", "content": [{"type": "image"}]},
        "messages[1].content: must be a text",
        "images, are not supported",
    ),
    (
        {"role": "assistant", "content": "x", "tool_calls": [{"id": 1}]},
        "messages[1].tool_calls[0]: ",
        "must be {function: {name: ..., arguments: {...}}}",
    ),
    (
        {"role": "assistant", "content": "x", "function_call": {"name": "f"}},
        "messages[1].function_call: ",
        "not supported",
    ),
    ({"role": "user", "content": "x", "tool_call_id": "1"}, "messages[1].tool_call_id: ", "not supported"),
]


@pytest.mark.parametrize(
    ("turn", "where", "what"), BAD_TURNS, ids=[f"{turn}"[:60] for turn, _, _ in BAD_TURNS]
)
def test_a_message_that_is_wrong(file: Path, turn: object, where: str, what: str) -> None:
    problems = problems_in(file, row(QUESTION, turn, ANSWER))

    assert len(problems) == 1
    assert problems[0].startswith(f"1: {where}")
    assert what in problems[0]


SYSTEM = {"role": "system", "content": "Be brief."}
BAD_ROLES = [
    ([QUESTION], "instruction_tuning", "no assistant message"),
    ([SYSTEM, QUESTION], "instruction_tuning", "no assistant message"),
    ([ANSWER], "instruction_tuning", "no user message"),
    ([SYSTEM], "causal_lm", "no user message"),
    ([SYSTEM, SYSTEM, QUESTION, ANSWER], "instruction_tuning", "2 system messages"),
    ([SYSTEM, QUESTION, SYSTEM], "causal_lm", "2 system messages"),
]


@pytest.mark.parametrize(("turns", "task", "what"), BAD_ROLES)
def test_a_conversation_with_the_wrong_roles(file: Path, turns: list[object], task: str, what: str) -> None:
    problems = problems_in(file, row(*turns), task)

    assert len(problems) == 1
    assert problems[0].startswith("1: messages: ")
    assert what in problems[0]


def test_all_bad_lines_are_told_at_once(file: Path) -> None:
    lines = ["{", GOOD, "", row(QUESTION), "\xff", GOOD, row(QUESTION, {"role": "bot", "content": "x"}), GOOD]

    problems = problems_in(file, "\n".join(lines).encode("latin-1"))

    assert [problem.partition(":")[0] for problem in problems] == ["1", "4", "5", "7"]


def test_all_bad_messages_of_a_row_are_told_at_once(file: Path) -> None:
    problems = problems_in(
        file, row({"role": "bot", "content": ""}, QUESTION, {"role": "assistant", "content": None})
    )

    assert [problem.split(": ")[1] for problem in problems] == [
        "messages[0].role",
        "messages[0].content",
        "messages[2].content",
    ]


@pytest.mark.parametrize("value", ["x" * 10_000, 10**4000], ids=["text", "number"])
def test_a_long_value_is_not_repeated_in_full(file: Path, value: str | int) -> None:
    problems = problems_in(file, row(QUESTION, {"role": value, "content": "y"}))

    assert len(problems[0]) < 300


# Weights, as OpenAI's rows have them


@pytest.mark.parametrize("weight", [0, 1, 0.0, 1.0])
def test_an_answer_of_weight_0_does_not_count(file: Path, weight: float) -> None:
    file.write_text(row(QUESTION, {**ANSWER, "weight": weight}, QUESTION, ANSWER))

    rows, remarks = read_rows(str(file), "instruction_tuning"), remarks_on(file, "instruction_tuning")

    assert [message.trained for message in rows[0].messages] == [True, weight == 1, True, True]
    assert remarks == []


@pytest.mark.parametrize("weight", [0.5, -1, 2, "0", None, True, [0]])
def test_another_weight_is_an_error(file: Path, weight: object) -> None:
    problems = problems_in(file, row(QUESTION, {**ANSWER, "weight": weight}))

    assert len(problems) == 1
    assert problems[0].startswith("1: messages[1].weight: must be 0 or 1, is ")


def test_a_row_whose_answers_all_have_weight_0_is_an_error(file: Path) -> None:
    problems = problems_in(file, row(QUESTION, {**ANSWER, "weight": 0}))

    assert problems == ["1: messages: every assistant message has weight 0, so there is nothing to train on"]


def test_a_weight_without_an_answer_is_ignored(file: Path) -> None:
    file.write_text(row({**QUESTION, "weight": 0}, ANSWER))

    assert remarks_on(file, "instruction_tuning") == [
        f"{file}: messages[].weight is ignored; 1 rows have it, the first in line 1"
    ]


def test_a_weight_is_ignored_where_all_tokens_count(file: Path) -> None:
    file.write_text(row(QUESTION, {**ANSWER, "weight": 0}))

    rows, remarks = read_rows(str(file), "causal_lm"), remarks_on(file, "causal_lm")

    assert rows[0].messages[1].trained
    assert remarks == [f"{file}: messages[].weight is ignored; 1 rows have it, the first in line 1"]


# Keys that are ignored


def test_rows_of_known_keys_give_no_remarks(file: Path) -> None:
    file.write_text(f"{GOOD}\n{GOOD}\n")

    assert remarks_on(file, "instruction_tuning") == []


def test_each_key_that_is_ignored_is_told_once_with_how_often_and_where_first(file: Path) -> None:
    named = {**QUESTION, "name": "Ann"}
    file.write_text(
        "\n".join(
            [
                GOOD,
                row(named, ANSWER, named, ANSWER, id=1),
                GOOD,
                row(QUESTION, ANSWER, id=2),
                row(named, ANSWER),
            ]
        )
    )

    rows, remarks = read_rows(str(file), "instruction_tuning"), remarks_on(file, "instruction_tuning")

    assert len(rows) == 5
    assert remarks == [
        f"{file}: id is ignored; 2 rows have it, the first in line 2",
        f"{file}: messages[].name is ignored; 2 rows have it, the first in line 2",
    ]


def test_empty_tool_calls_are_ignored_as_other_keys_are(file: Path) -> None:
    file.write_text(row(QUESTION, {**ANSWER, "tool_calls": None}))

    rows, remarks = read_rows(str(file), "instruction_tuning"), remarks_on(file, "instruction_tuning")

    assert turns_of(rows) == [[("user", "Ping?"), ("assistant", "Pong.")]]
    assert len(remarks) == 1
    assert "messages[].tool_calls" in remarks[0]
