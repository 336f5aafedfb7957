"""`finetune data`, and the rows that `finetune plan` shows."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from pydantic import JsonValue
from rich.console import Console
from tests.cli.command_line import Command, Ended, json_of, small_job
from tests.cli.terminal import CONTROL_SEQUENCE, Terminal

from finetune_cli.data_view import JobData
from finetune_cli.plan_view import JobPlan
from finetune_cli.rows_view import marked, show_rows
from finetune_trainer.data.shown_rows import ShownRow, ShownToken

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Ping?\nSay it."},
    {"role": "assistant", "content": "Pong.\nPing."},
]
MARKED = (
    "<|begin_of_text|><|im_start|>system↵\nBe brief.<|im_end|>↵\n"
    "<|im_start|>user↵\nPing?↵\nSay it.<|im_end|>↵\n"
    "<|im_start|>assistant↵\n⟦Pong.↵\nPing.<|im_end|>⟧↵\n"
)


def job_with_a_talk(directory: Path, model: Path, **fields: JsonValue) -> Path:
    job = small_job(directory, model, dtype="fp32", **fields)
    rows = (directory / "train.jsonl").read_text()
    (directory / "train.jsonl").write_text(json.dumps({"messages": TALK}) + "\n" + rows)
    return job


def lines_of(ended: Ended) -> list[str]:
    return [" ".join(line.split()) for line in ended.out.splitlines()]


def test_people_get_what_is_in_each_file_and_how_long_rows_are(
    finetune: Command, tiny_model: Path, tmp_path: Path
) -> None:
    job = small_job(tmp_path, tiny_model, context_length=128)
    rows = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join([*rows, rows[2], "\n", rows[4]]))
    (tmp_path / "valid.jsonl").write_text(rows[1] + rows[5])

    ended = finetune("data", job)
    train, valid = JobData.model_validate_json(finetune("data", job, "-o", "json").out).files
    lines = lines_of(ended)

    assert ended.code == 0
    assert lines[0] == f"tiny: {tiny_model}, instruction_tuning"
    assert max(map(len, ended.out.splitlines()[1:])) <= 80
    assert "rows 14" in lines
    assert f"tokens {train.tokens:,}" in lines
    assert f"truncated rows {train.truncated_rows}, which have more than 128 tokens" in lines
    assert train.truncated_rows > 0
    assert "duplicates 2; the first, line 13, is line 3 again" in lines
    assert "also training rows 2; the first, line 1, is line 2 of the training rows" in lines
    assert valid.rows == 2
    for each in train.lengths:
        [bar] = [line for line in lines if line.startswith(f"{each.shortest} - {each.longest} {each.rows}")]
        assert ("█" in bar) == (each.rows > 0)


def test_json_has_all_of_it_and_each_token(finetune: Command, tiny_model: Path, tmp_path: Path) -> None:
    job = job_with_a_talk(tmp_path, tiny_model)

    ended = finetune("data", job, "--rows", "2", "-o", "json")
    document = json_of(ended)
    data = JobData.model_validate_json(ended.out)

    assert (ended.code, ended.err) == (0, "")
    assert [file.path for file in data.files] == ["train.jsonl", "valid.jsonl"]
    assert [row.place for row in data.rows] == ["train.jsonl:1", "train.jsonl:2"]
    assert isinstance(document["rows"], list)
    assert marked(data.rows[0].tokens) == MARKED
    [last] = [token for token in data.rows[0].tokens if token.special and token.trained]
    assert (last.token, last.id) == ("<|im_end|>", 2)


@pytest.mark.parametrize("command", ["data", "plan"])
def test_without_colours_what_is_trained_on_is_between_marks(
    finetune: Command, tiny_model: Path, tmp_path: Path, command: str
) -> None:
    job = job_with_a_talk(tmp_path, tiny_model)

    ended = finetune(command, job, "--rows", "1")
    without = finetune(command, job)

    assert ended.code == 0
    assert ended.out.startswith(without.out)
    shown = ended.out.removeprefix(without.out)
    tokens = (
        JobData.model_validate_json(finetune("data", job, "--rows", "1", "-o", "json").out).rows[0].length
    )
    assert shown == (
        f"\n⟦trained on⟧, not trained on, ↵ line break\n\ntrain.jsonl:1: {tokens} tokens\n{MARKED}\n"
    )


def test_the_plan_as_json_has_the_rows_too(finetune: Command, tiny_model: Path, tmp_path: Path) -> None:
    job = job_with_a_talk(tmp_path, tiny_model)

    plan = JobPlan.model_validate_json(finetune("plan", job, "--rows", "1", "-o", "json").out)
    data = JobData.model_validate_json(finetune("data", job, "--rows", "1", "-o", "json").out)

    assert plan.rows == data.rows
    assert len(plan.rows) == 1


def test_on_a_terminal_what_is_trained_on_is_green(tiny_model: Path, tmp_path: Path) -> None:
    job_with_a_talk(tmp_path, tiny_model)

    with Terminal("data", "job.yaml", "--rows", "1", cwd=tmp_path, columns=80) as terminal:
        assert terminal.exit_code() == 0
    shown = terminal.seen.partition("train.jsonl:1: ")[2].replace("\r\n", "\n")

    plain = CONTROL_SEQUENCE.sub("", shown)
    assert MARKED.translate({ord("⟦"): None, ord("⟧"): None}) in plain
    green = "".join(re.findall(r"\x1b\[(?:1;|7;|1;7;)?(?:32|92)m([^\x1b]*)\x1b", shown))
    assert green == "Pong.↵Ping.<|im_end|>", "a line break ends a colour, which begins again"


def test_a_row_that_was_cut_and_an_answer_and_a_label_are_named() -> None:
    token = ShownToken(token="a\x1b[2J", id=7, trained=True, special=False)
    rows = [
        ShownRow(place="t.jsonl:3", answer="rejected", label=None, length=1200, tokens=(token,)),
        ShownRow(place="t.parquet: row 4", answer=None, label="[[yes]]", length=2, tokens=(token, token)),
    ]
    shown = io.StringIO()

    show_rows(Console(file=shown, markup=False, highlight=False, soft_wrap=True), rows)

    assert shown.getvalue().splitlines()[3:] == [
        "t.jsonl:3: rejected, 1 of 1,200 tokens",
        r"⟦a\x1b[2J⟧",
        "",
        "t.parquet: row 4: label [[yes]], 2 tokens",
        r"⟦a\x1b[2Ja\x1b[2J⟧",
    ]


def test_what_is_wrong_with_rows_is_an_error(finetune: Command, tiny_model: Path, tmp_path: Path) -> None:
    job = small_job(tmp_path, tiny_model)
    (tmp_path / "train.jsonl").write_text('{"messages": []}\n')

    ended = finetune("data", job)

    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith("error: train.jsonl:1: messages: ")
