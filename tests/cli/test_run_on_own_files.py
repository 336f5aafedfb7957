"""People's own files train as they are, and what is wrong with them is one clear line."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from pydantic import JsonValue
from tests.cli.command_line import Command, json_of, only_run, small_job
from tests.cli.test_bad_input import refused
from transformers import AutoTokenizer

from finetune_cli.plan_view import JobPlan


def table(rows: int, first: int = 0) -> pd.DataFrame:
    numbers = range(first, first + rows)
    return pd.DataFrame(
        {
            "question": [f"Ping {number}?" for number in numbers],
            "answer": [f"Pong {number}." for number in numbers],
        }
    )


@pytest.mark.parametrize("kind", ["csv", "parquet", "a-directory"])
def test_a_table_trains_with_the_names_of_its_columns(
    finetune: Command, tmp_path: Path, tiny_model: Path, kind: str
) -> None:
    for name, rows in (("train", table(12)), ("valid", table(4, 12))):
        if kind == "csv":
            rows.to_csv(tmp_path / f"{name}.csv", index=False)
        elif kind == "parquet":
            rows.to_parquet(tmp_path / f"{name}.parquet")
        else:
            (tmp_path / name).mkdir()
            rows[:2].to_parquet(tmp_path / name / "a.parquet")
            rows[2:].to_json(tmp_path / name / "b.jsonl.gz", orient="records", lines=True)
    ending = "" if kind == "a-directory" else f".{kind}"
    job = small_job(
        tmp_path,
        tiny_model,
        train_path=f"train{ending}",
        valid_path=f"valid{ending}",
        data_columns={"instruction": "question", "output": "answer"},
    )

    ended = finetune("run", job, "--storage", "runs", "-o", "json")

    assert ended.code == 0, ended.err
    status = json_of(ended)["status"]
    assert isinstance(status, dict)
    assert status["phase"] == "Succeeded"
    assert "12 rows are of Alpaca's form (instruction, input, output)" in ended.err
    plan = status["plan"]
    assert isinstance(plan, dict)
    assert (plan["rows"], plan["validationRows"], plan["totalSteps"]) == (12, 4, 6)


@pytest.fixture
def without_template(tmp_path: Path, tiny_model: Path) -> Path:
    """The tiny model with a tokenizer that writes no conversations."""
    model = tmp_path / "base"
    model.mkdir()
    for file in tiny_model.iterdir():
        if file.name != "chat_template.jinja":
            (model / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(model)
    return model


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("causal_lm", {"text": "Ping? Pong."}),
        ("instruction_tuning", {"prompt": "Ping?", "completion": " Pong."}),
    ],
)
def test_texts_train_a_model_without_a_chat_template(
    finetune: Command, tmp_path: Path, without_template: Path, task: str, row: dict[str, str]
) -> None:
    job = small_job(tmp_path, without_template, train_path="rows.jsonl", valid_path=None, task=task)
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 12)

    ended = finetune("run", job, "--storage", "runs", "-o", "json")

    assert ended.code == 0, ended.err
    status = json_of(ended)["status"]
    assert isinstance(status, dict)
    assert status["phase"] == "Succeeded"


def test_the_plan_of_an_array_is_that_of_its_lines(
    finetune: Command, tmp_path: Path, tiny_model: Path
) -> None:
    job = small_job(tmp_path, tiny_model, dtype="fp32")
    of_lines = JobPlan.model_validate_json(finetune("plan", job, "-o", "json").out)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    (tmp_path / "train.json").write_text(json.dumps(rows, indent=1))
    job = small_job(tmp_path, tiny_model, dtype="fp32", train_path="train.json")

    assert JobPlan.model_validate_json(finetune("plan", job, "-o", "json").out).plan == of_lines.plan


def test_files_are_mixed_and_some_rows_held_out(finetune: Command, tmp_path: Path, tiny_model: Path) -> None:
    table(40).rename(columns={"question": "instruction", "answer": "output"}).to_csv(tmp_path / "a.csv")
    job = small_job(
        tmp_path,
        tiny_model,
        train_path=[{"path": "a.csv", "weight": 0.5}, {"path": "train.jsonl", "rows": 20}],
        valid_path=None,
        valid_fraction=0.2,
        dtype="fp32",
    )
    planned = JobPlan.model_validate_json(finetune("plan", job, "-o", "json").out).plan

    ended = finetune("run", job, "--storage", "runs", "-o", "json")

    assert ended.code == 0, ended.err
    status = json_of(ended)["status"]
    assert isinstance(status, dict)
    assert status["phase"] == "Succeeded"
    plan = status["plan"]
    assert isinstance(plan, dict)
    left = 40 + 12 - planned.validation_rows
    assert 30 < left < 52
    assert plan["rows"] == planned.rows
    assert 30 < planned.rows < 40, "20 of train.jsonl, and a half of what is left of a.csv"
    assert planned.steps_per_epoch == -(-planned.rows // 4)
    assert plan["validationRows"] == planned.validation_rows
    assert "train.jsonl: an epoch has 20 rows of its" in ended.err
    inputs = json.loads((only_run(tmp_path / "runs") / "inputs.json").read_text())
    assert sorted(inputs) == ["a.csv", "train.jsonl"]


BAD: list[tuple[str, bytes, dict[str, JsonValue], str]] = [
    ("rows.xlsx", b"PK\x03\x04..", {}, "rows.xlsx: is an Excel workbook or a ZIP archive; save its rows"),
    ("rows.csv", b"a,b\n1,2\n", {}, "rows.csv: row 1: messages: is missing; the row has a, b, and known"),
    ("rows.jsonl", b'{"text": "x"}\n', {}, "rows.jsonl:1: text: is plain text, in which no answer can be"),
    (
        "rows.jsonl",
        b'{"question": "x"}\n',
        {"data_columns": {"prompt": "question", "completion": "answer"}},
        "rows.jsonl:1: answer: is missing (spec.data_columns.completion); the row has question",
    ),
    (
        "rows.jsonl",
        b'{"messages": [{"role": "user", "content": "x"}], "images": ["a.png"]}\n',
        {},
        "rows.jsonl:1: images: images are not supported; leave such rows out",
    ),
]


@pytest.mark.parametrize(("name", "content", "fields", "said"), BAD)
def test_what_cannot_be_trained_on_is_one_line_and_nothing_is_written(
    finetune: Command,
    tmp_path: Path,
    tiny_model: Path,
    name: str,
    content: bytes,
    fields: dict[str, JsonValue],
    said: str,
) -> None:
    small_job(tmp_path, tiny_model, train_path=name, valid_path=None, **fields)
    (tmp_path / name).write_bytes(content)

    (line,) = refused(finetune, tmp_path)

    assert line.startswith(f"error: {said}")
