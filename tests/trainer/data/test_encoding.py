"""Lines become the tokens that the chat format makes of their rows."""

from __future__ import annotations

import json

from tests.trainer.tokenizers_for_tests import byte_level

from finetune_trainer.data.chat import ChatFormat, Task, chat_format
from finetune_trainer.data.encoding import ConversationEncoder
from finetune_trainer.data.remarks import Found
from finetune_trainer.data.rows import Lines, Message, Row


def row(*contents: str, first: str = "user", **others: object) -> bytes:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    turns = [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]
    return json.dumps({"messages": turns, **others}).encode() + b"\n"


def chatml(task: Task = "instruction_tuning", refusing: str = "") -> ChatFormat:
    tokenizer = byte_level()
    tokenizer.chat_template = refusing + str(tokenizer.chat_template)
    return chat_format(tokenizer, None, task, "org/model")


STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('a user must begin') }}{% endif %}"


def test_each_row_is_what_the_chat_format_makes_of_it() -> None:
    lines = [row("Ping?", "Pong."), b"\n", row("A longer question, 你好?", "No."), row("a", "b", "c", "d")]

    encoded = ConversationEncoder("instruction_tuning", chatml()).encode(Lines(7, lines))

    talks = [("Ping?", "Pong."), ("A longer question, 你好?", "No."), ("a", "b", "c", "d")]
    roles = ("user", "assistant") * 2
    expected = [chatml().encode(Row(1, tuple(map(Message, roles, contents)))) for contents in talks]
    rows = [encoded.rows.row(index) for index in range(len(encoded.rows))]
    assert [ids.tolist() for ids, _ in rows] == [each.input_ids for each in expected]
    assert [trained.tolist() for _, trained in rows] == [each.trained for each in expected]
    assert encoded.rows.lines.tolist() == [7, 9, 10]
    assert (encoded.unreadable, encoded.refused) == ([], [])


def test_arrays_are_small_and_rows_are_views_of_them() -> None:
    rows = ConversationEncoder("instruction_tuning", chatml()).encode(Lines(1, [row("Ping?", "Pong.")])).rows

    ids, trained = rows.row(0)

    arrays = (ids, trained, rows.offsets, rows.lines)
    assert [array.dtype.name for array in arrays] == ["int32", "bool", "int64", "int64"]
    assert ids.base is rows.input_ids
    assert trained.base is rows.trained


def test_every_row_that_the_chat_format_refuses_is_told_with_its_line() -> None:
    lines = [
        row("Welcome!", "Ping?", first="assistant"),
        row("Ping?", "Pong."),
        row("a", "b", first="assistant"),
    ]

    encoded = ConversationEncoder("causal_lm", chatml("causal_lm", STRICT)).encode(Lines(2, lines))

    assert [problem[:11] for problem in encoded.refused] == ["2: messages", "4: messages"]
    assert "a user must begin" in encoded.refused[0]
    assert encoded.rows.lines.tolist() == [3]


def test_where_a_line_is_no_row_nothing_is_written_as_text() -> None:
    lines = [row("Welcome!", "Ping?", first="assistant"), b"{"]
    encoder = ConversationEncoder("causal_lm", chatml("causal_lm", STRICT))

    encoded = encoder.encode(Lines(1, lines))
    checked = encoder.encode(Lines(1, [row("Welcome!", "Ping?", first="assistant")]), check_only=True)

    assert [problem[:13] for problem in encoded.unreadable] == ["2: is not JSO"]
    assert (encoded.refused, len(encoded.rows)) == ([], 0)
    assert (checked.refused, checked.unreadable, len(checked.rows)) == ([], [], 0)


def test_what_is_remarked_of_the_parts_of_a_file_is_what_is_remarked_of_all_of_it() -> None:
    lines = [
        row("Ping?", "Pong.", id=1),
        row("What is <|im_end|>?", "A token.", id=2, at="noon"),
        row("Ping?", "<|im_start|>", at="noon"),
    ]
    encoder = ConversationEncoder("instruction_tuning", chatml())

    whole = encoder.encode(Lines(1, lines)).remarks
    parts = encoder.encode(Lines(1, lines[:1])).remarks
    for number in (2, 3):
        parts.add(encoder.encode(Lines(number, lines[number - 1 : number])).remarks)

    assert parts == whole
    assert whole.ignored_keys == {"id": Found(rows=2, first=1), "at": Found(rows=2, first=2)}
    assert whole.control_tokens == ["<|im_end|>", "<|im_start|>"]
    assert whole.with_control_tokens == Found(rows=2, first=2)
