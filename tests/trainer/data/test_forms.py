"""Rows in the forms of the hub's data sets become what other trainers make of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.trainer.tokenizers_for_tests import CHATML, CHATML_TOKENS, byte_level
from transformers import PreTrainedTokenizerFast
from trl.data_utils import maybe_convert_to_chatml
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.data.chat import Encoded, Task, chat_format, text_format
from finetune_trainer.data.reading import read_rows
from finetune_trainer.data.rows import Lines, Message, Row, Text, parse_rows

Fields = Mapping[str, object]


def parsed(
    row: Fields, task: str = "instruction_tuning", columns: dict[str, str] | None = None
) -> tuple[Row | Text, list[str]]:
    """A row, and what is remarked of it."""
    found = parse_rows(Lines(1, [json.dumps(row).encode()]), task, columns)
    assert found.problems == []
    return found.rows[0], found.remarks.words("rows", "nobody")


def problems(
    row: Fields, task: str = "instruction_tuning", columns: dict[str, str] | None = None
) -> list[str]:
    found = parse_rows(Lines(1, [json.dumps(row).encode()]), task, columns)
    assert not found.rows
    return [problem.removeprefix("1: ") for problem in found.problems]


def said(row: Row | Text) -> list[tuple[str, str]]:
    assert isinstance(row, Row)
    return [(message.role, message.content) for message in row.messages]


# ShareGPT

SHAREGPT: Fields = {
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Ping?"},
        {"from": "gpt", "value": "Pong."},
        {"from": "user", "value": "And you?"},
        {"from": "assistant", "value": "Me too."},
    ]
}


def test_sharegpts_turns_are_messages_with_other_names() -> None:
    row, remarks = parsed(SHAREGPT)

    theirs = maybe_convert_to_chatml(json.loads(json.dumps(SHAREGPT)))["messages"]
    roles = {"human": "user", "gpt": "assistant"}
    assert said(row) == [(roles.get(each["role"], each["role"]), each["content"]) for each in theirs]
    assert remarks == ["rows: 1 rows are of ShareGPT's form (conversations)"]


def test_conversations_may_have_openais_names_and_a_system_text() -> None:
    turns = [{"role": "user", "content": "Ping?"}, {"role": "assistant", "content": "Pong.", "weight": 1}]

    row, _ = parsed({"conversations": turns, "system": "Be brief."})

    assert said(row) == [("system", "Be brief."), ("user", "Ping?"), ("assistant", "Pong.")]


@pytest.mark.parametrize(
    ("turn", "what"),
    [
        ({"from": "bot", "value": "x"}, ".from: must be system, human, gpt or tool, is 'bot'"),
        ({"from": "gpt", "value": ""}, ".value: is empty; give it a text or leave the message out"),
        ({"value": "x"}, ".from: must be system, human, gpt or tool, is missing or null"),
    ],
)
def test_a_turn_of_sharegpt_that_is_wrong(turn: Fields, what: str) -> None:
    turns = [{"from": "human", "value": "Ping?"}, turn, {"from": "gpt", "value": "Pong."}]

    assert problems({"conversations": turns}) == [f"conversations[1]{what}"]


# Alpaca


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"instruction": "Add.", "input": "1 1", "output": "2"},
            [("user", "Add.\n\n1 1"), ("assistant", "2")],
        ),
        ({"instruction": "Add.", "input": "", "output": "2"}, [("user", "Add."), ("assistant", "2")]),
        ({"instruction": "Add.", "input": None, "output": "2"}, [("user", "Add."), ("assistant", "2")]),
        (
            {"instruction": "Add.", "output": "2", "system": "Sum."},
            [("system", "Sum."), ("user", "Add."), ("assistant", "2")],
        ),
    ],
)
def test_alpacas_input_stands_below_its_instruction(row: Fields, expected: list[tuple[str, str]]) -> None:
    found, remarks = parsed(row)

    assert said(found) == expected
    assert remarks == ["rows: 1 rows are of Alpaca's form (instruction, input, output)"]


def test_alpacas_history_is_refused_by_name() -> None:
    row = {"instruction": "a", "output": "b", "history": [["c", "d"]]}

    assert problems(row) == ["history: is not supported; give such rows as messages"]


# Forms that cannot be told


@pytest.mark.parametrize(
    ("row", "forms", "example"),
    [
        (
            {"instruction": "a", "output": "b", "messages": []},
            "messages; instruction and output",
            "{messages: messages}",
        ),
        (
            {"prompt": "a", "completion": "b", "conversations": [], "text": "x"},
            "conversations; prompt and completion",
            "{conversations: conversations}",
        ),
    ],
)
def test_a_row_with_the_keys_of_several_forms_is_refused(row: Fields, forms: str, example: str) -> None:
    (problem,) = problems(row)

    assert problem.startswith(f"has the keys of several forms ({forms}), and one of them is to be read")
    assert problem.endswith(f"spec.data_columns, as {example}")


def test_a_text_beside_another_form_is_ignored() -> None:
    row, remarks = parsed({"instruction": "Ping?", "output": "Pong.", "text": "### Ping? Pong."})

    assert said(row) == [("user", "Ping?"), ("assistant", "Pong.")]
    assert "rows: text is ignored; 1 rows have it, the first in line 1" in remarks


def test_half_of_another_form_is_ignored_as_any_other_key() -> None:
    turns = [{"role": "user", "content": "Ping?"}, {"role": "assistant", "content": "Pong."}]

    row, remarks = parsed({"prompt": "Ping?", "messages": turns})

    assert said(row) == [("user", "Ping?"), ("assistant", "Pong.")]
    assert remarks == ["rows: prompt is ignored; 1 rows have it, the first in line 1"]


@pytest.mark.parametrize("key", ["image", "images"])
def test_images_are_refused_by_name(key: str) -> None:
    row = {"messages": [{"role": "user", "content": "What is this?"}], key: [{"path": "a.png"}]}

    assert problems(row, "causal_lm") == [f"{key}: images are not supported; leave such rows out"]


# Columns of other names


def test_columns_may_have_other_names() -> None:
    columns = {"instruction": "question", "input": "context", "output": "answer"}
    row = {"question": "Add.", "context": "1 1", "answer": "2", "text": "Add. 1 1 2", "id": 7}

    found, remarks = parsed(row, columns=columns)

    assert said(found) == [("user", "Add.\n\n1 1"), ("assistant", "2")]
    assert remarks[1:] == [
        "rows: text is ignored; 1 rows have it, the first in line 1",
        "rows: id is ignored; 1 rows have it, the first in line 1",
    ]


def test_a_column_chooses_among_forms() -> None:
    row = {"instruction": "Add.", "input": "1 1", "output": "2", "text": "Add. 1 1 2"}

    assert said(parsed(row, columns={"output": "output"})[0])[1] == ("assistant", "2")
    assert parsed(row, "causal_lm", {"text": "text"})[0] == Text(1, "Add. 1 1 2")


def test_a_column_that_is_not_there_is_told_with_what_asked_for_it() -> None:
    assert problems(
        {"question": "a", "reply": "b"}, columns={"prompt": "question", "completion": "answer"}
    ) == ["answer: is missing (spec.data_columns.completion); the row has question, reply"]


def test_errors_name_the_column_that_is_there() -> None:
    assert problems({"dialog": []}, columns={"messages": "dialog"}) == [
        "dialog: must be a list of at least one message, is empty"
    ]


# Texts, and prompts with their completions: TRL is the oracle

TEXTS: list[dict[str, Any]] = [
    {"text": "The sky is blue."},
    {"text": "Ends as it should.<|endoftext|>"},
    {"text": " \nÉ "},
]
COMPLETIONS: list[dict[str, Any]] = [
    {"prompt": "The sky is", "completion": " blue."},
    {"prompt": "The sky is ", "completion": "blue."},
    {"prompt": "Add 1", "completion": "1 makes 2.<|endoftext|>"},
]
CONVERSATIONS: list[dict[str, Any]] = [
    {
        "prompt": [{"role": "user", "content": "What colour is the sky?"}],
        "completion": [{"role": "assistant", "content": "It is blue."}],
    },
    {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Ping?"},
            {"role": "assistant", "content": "Pong."},
            {"role": "user", "content": "And you?"},
        ],
        "completion": [{"role": "assistant", "content": "Me too."}],
    },
]
ORACLE = {"texts": TEXTS, "completions": COMPLETIONS, "conversations": CONVERSATIONS}


def tokenizer(**names: str) -> PreTrainedTokenizerFast:
    return byte_level(
        CHATML_TOKENS, template=CHATML, eos_token="<|endoftext|>", pad_token="<|im_end|>", **names
    )


def of_trl(
    rows: list[dict[str, Any]],
    own: PreTrainedTokenizerFast,
    directory: Path,
    model: Path,
    *,
    completion_only: bool | None,
) -> list[Encoded]:
    """What TRL's SFTTrainer makes of rows."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    loaded.resize_token_embeddings(len(own))
    trainer = SFTTrainer(
        model=loaded,
        args=SFTConfig(
            output_dir=str(directory),
            max_length=None,
            use_cpu=True,
            bf16=False,
            report_to="none",
            completion_only_loss=completion_only,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=own,
    )
    assert isinstance(trainer.train_dataset, Dataset)
    return [
        Encoded(row["input_ids"], [label != -100 for label in row["labels"]]) for row in trainer.train_dataset
    ]


@pytest.mark.parametrize("bos", [{}, {"bos_token": "<|im_start|>"}], ids=["plain", "bos"])
@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("texts", "causal_lm"),
        ("completions", "causal_lm"),
        ("completions", "instruction_tuning"),
        ("conversations", "causal_lm"),
        ("conversations", "instruction_tuning"),
    ],
)
def test_texts_and_completions_are_the_tokens_of_trl_and_count_as_there(
    kind: str, task: Task, bos: dict[str, str], tmp_path: Path, tiny_model: Path
) -> None:
    rows, own = ORACLE[kind], tokenizer(**bos)
    completion_only = None if kind == "texts" else task == "instruction_tuning"
    expected = of_trl(rows, own, tmp_path, tiny_model, completion_only=completion_only)
    chat = chat_format(own, None, task, "org/model")

    assert [chat.encode(parsed(row, task)[0]) for row in rows] == expected


def test_a_text_has_no_answers_to_train_on() -> None:
    assert problems({"text": "x"}) == [
        (
            "text: is plain text, in which no answer can be told; with spec.task causal_lm all tokens count,"
            " or give rows with a prompt and a completion"
        )
    ]


@pytest.mark.parametrize("row", [{"text": "x"}, {"prompt": "x", "completion": "y"}])
def test_labels_need_messages(row: Fields) -> None:
    from finetune_trainer.data.labels import parse_labelled

    found = parse_labelled(Lines(1, [json.dumps(row).encode()]), ["y"])

    assert found.problems == [f"1: {next(iter(row))}: the task classification needs messages"]


def test_a_prompt_and_its_completion_are_of_one_kind() -> None:
    assert problems({"prompt": "x", "completion": [{"role": "assistant", "content": "y"}]}) == [
        "prompt and completion: one is a text and the other a list; both must be texts, or lists of messages"
    ]


def test_texts_need_a_token_that_ends_them_and_no_chat_template() -> None:
    bare = byte_level(CHATML_TOKENS, template=None)
    with pytest.raises(FineTuneError, match="no token that ends a text") as raised:
        text_format(bare, "causal_lm", "org/model", "no template").encode(Text(1, "x"))
    assert raised.value.failure_class is FailureClass.INVALID_DATA

    own = byte_level(CHATML_TOKENS, template=None, eos_token="<|endoftext|>")
    chat = text_format(own, "causal_lm", "org/model", "no template")

    assert chat.encode(Text(1, "x")).input_ids[-1] == own.eos_token_id
    assert chat.ends == (own.eos_token_id,)
    with pytest.raises(FineTuneError, match="no template"):
        chat.encode(Row(1, (Message("user", "x"),)))


def test_rows_of_conversations_are_read_in_every_form(tmp_path: Path) -> None:
    file = tmp_path / "mixed.jsonl"
    file.write_text(
        "\n".join(map(json.dumps, [SHAREGPT, {"instruction": "a", "output": "b"}, CONVERSATIONS[0]]))
    )

    rows = read_rows(str(file), "instruction_tuning")

    assert [len(row.messages) for row in rows] == [5, 2, 2]
