"""Calls of tools are written by the tokenizer's own template, and trained on as other answers."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from tests.trainer.chat_families import FAMILIES
from tests.trainer.tokenizers_for_tests import CHATML, byte_level, trained_texts
from transformers import PreTrainedTokenizerFast

from finetune_api.failure import FineTuneError
from finetune_api.generation import GenerationConfig, PromptFormat
from finetune_trainer.data.chat import Encoded, chat_format
from finetune_trainer.data.rows import Lines, Row, parse_rows

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a town.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"town": "Bern"}},
}
AS_TEXT = {**CALL, "function": {"name": "get_weather", "arguments": '{"town": "Bern"}'}}
TURNS: list[dict[str, Any]] = [
    {"role": "user", "content": "Is it raining in Bern?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"rain": true}', "tool_call_id": "call00001", "name": "get_weather"},
    {"role": "assistant", "content": "It is."},
    {"role": "user", "content": "Thanks."},
    {"role": "assistant", "content": "You are welcome."},
]


def row_of(turns: object = TURNS, tools: object = (WEATHER,), task: str = "instruction_tuning") -> Row:
    document = {"messages": turns, **({"tools": tools} if tools else {})}
    found = parse_rows(Lines(1, [json.dumps(document).encode()]), task)
    assert found.problems == []
    assert found.remarks.words("rows", "nobody") == []
    (row,) = found.rows
    assert isinstance(row, Row)
    return row


def encoded(tokenizer: PreTrainedTokenizerFast, row: Row) -> Encoded:
    return chat_format(tokenizer, None, "instruction_tuning", "org/model").encode(row)


def marked_by_transformers(tokenizer: PreTrainedTokenizerFast, tools: list[Any]) -> Encoded:
    tokens = cast(
        "dict[str, list[int]]",
        tokenizer.apply_chat_template(
            TURNS, tools=tools, return_dict=True, return_assistant_tokens_mask=True
        ),
    )
    return Encoded(tokens["input_ids"], [marked == 1 for marked in tokens["assistant_masks"]])


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_with_marks_the_mask_is_that_of_transformers(family: str) -> None:
    twin = FAMILIES[family].twin

    ours, theirs = encoded(twin, row_of()), marked_by_transformers(twin, [WEATHER])

    assert ours.input_ids == theirs.input_ids
    assert [text.strip() for text in trained_texts(twin, ours)] == [
        text.strip() for text in trained_texts(twin, theirs)
    ]
    assert "get_weather" in trained_texts(twin, ours)[0]


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_without_marks_calls_count_as_answers_do(family: str) -> None:
    own = FAMILIES[family].tokenizer

    found = trained_texts(own, encoded(own, row_of()))

    thought = "<think>\n\n</think>\n\n" if family == "qwen3" else ""
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"town": "Bern"}}\n</tool_call><|im_end|>'
    assert [text.strip() for text in found] == [
        call,
        "It is.<|im_end|>",
        f"{thought}You are welcome.<|im_end|>",
    ]


@pytest.mark.parametrize(
    ("turns", "tools"),
    [
        ([*TURNS[:1], {**TURNS[1], "tool_calls": [AS_TEXT]}, *TURNS[2:]], [WEATHER]),
        ([*TURNS[:1], {**TURNS[1], "tool_calls": json.dumps([CALL])}, *TURNS[2:]], json.dumps([WEATHER])),
        ([*TURNS[:1], {"role": "assistant", "content": None, "tool_calls": [CALL]}, *TURNS[2:]], [WEATHER]),
    ],
    ids=["arguments-as-text", "lists-as-text", "content-null"],
)
def test_calls_and_definitions_may_be_json_as_text(turns: object, tools: object) -> None:
    own = FAMILIES["qwen2_5"].tokenizer

    assert encoded(own, row_of(turns, tools)) == encoded(own, row_of())


def test_definitions_are_written_though_nothing_calls() -> None:
    own = FAMILIES["qwen2_5"].tokenizer
    row = row_of([TURNS[0], TURNS[3]])

    ours = encoded(own, row)

    theirs = own.apply_chat_template([TURNS[0], TURNS[3]], tools=[WEATHER], tokenize=True, return_dict=True)
    assert ours.input_ids == cast("dict[str, list[int]]", theirs)["input_ids"]
    assert trained_texts(own, ours) == ["It is.<|im_end|>"]


def refusal(tokenizer: PreTrainedTokenizerFast, row: Row) -> str:
    with pytest.raises(FineTuneError) as raised:
        encoded(tokenizer, row)
    return str(raised.value)


@pytest.mark.parametrize(
    ("row", "where"),
    [
        (row_of(), "tools[0]"),
        (row_of(TURNS, ()), "messages[1].tool_calls"),
    ],
)
def test_what_the_template_does_not_write_is_refused_by_name(row: Row, where: str) -> None:
    assert f"{where}: is not in the text" in refusal(byte_level(template=CHATML), row)


def test_a_prompt_format_writes_no_tools() -> None:
    plain = GenerationConfig(
        prompt_format=PromptFormat(system="{instruction}", user="{instruction}", assistant="{instruction}")
    )
    chat = chat_format(byte_level(), plain, "instruction_tuning", "org/model")
    for row in (row_of(), row_of(TURNS, ())):
        with pytest.raises(FineTuneError, match="prompt_format writes no tools"):
            chat.encode(row)


BAD = [
    ({"role": "user", "content": "x", "tool_calls": [CALL]}, ".tool_calls: is the assistant's"),
    ({"role": "assistant", "tool_calls": "x"}, ".tool_calls: must be a list of calls, is 'x'"),
    ({"role": "assistant", "tool_calls": [{"function": {}}]}, ".tool_calls[0]: must be {function: {name"),
    (
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
        ".tool_calls[0].function.arguments: must be an object or one as JSON, is '{'",
    ),
    (
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
        ".tool_calls[0].function.arguments: must be an object, is a list",
    ),
]


@pytest.mark.parametrize(("turn", "what"), BAD)
def test_a_call_that_is_wrong(turn: object, what: str) -> None:
    document = {"messages": [TURNS[0], turn, TURNS[3]]}

    found = parse_rows(Lines(1, [json.dumps(document).encode()]), "instruction_tuning")

    assert len(found.problems) == 1
    assert found.problems[0].startswith(f"1: messages[1]{what}")


@pytest.mark.parametrize(
    ("tools", "what"),
    [
        ("x", "must be a list of tools' definitions"),
        ([1], "[0]: must be an object"),
        ([{}], "[0]: has no name"),
    ],
)
def test_definitions_that_are_wrong(tools: object, what: str) -> None:
    document = {"messages": [TURNS[0], TURNS[3]], "tools": tools}

    found = parse_rows(Lines(1, [json.dumps(document).encode()]), "instruction_tuning")

    assert found.problems[0].startswith("1: tools")
    assert what in found.problems[0]
