"""Sample answers: those that plain transformers gives, and a training that does not notice."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from pydantic import JsonValue
from tests.trainer.training_jobs import (
    FULL,
    LORA,
    Fields,
    column,
    files_of,
    job_of,
    lines_of,
    saved_in,
    train_here,
    train_in_processes,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.record import with_record
from finetune_api.status import FineTuneJobStatus
from finetune_trainer.data.questions import Question, questions
from finetune_trainer.model.load import load_tokenizer
from finetune_trainer.parallel.one_device import OneDevice
from finetune_trainer.report.metrics import SampleLine, sample_lines_in
from finetune_trainer.tasks.task import task_of
from finetune_trainer.training.job import TrainingJob
from finetune_trainer.training.samples import MOST_SECONDS, Sampler, allowance, sampler_of
from finetune_trainer.training.setup import load, set_up

PROMPTS: list[JsonValue] = ["What is the capital of France?", "And <b>who</b> are you?\nSay it."]
ASKED: Fields = {"sample_prompts": PROMPTS, "sample_max_tokens": 12, "num_epochs": 2, "eval_first": True}
DROPOUT: Fields = {"lora_config": {"r": 8, "lora_dropout": 0.1}}


def asking(job: TrainingJob) -> TrainingJob:
    """The job with the questions of its spec."""
    spec = job.prepared.spec
    asked, _ = questions(spec, task_of(spec).chat(load_tokenizer(spec)), None)
    return replace(job, prepared=replace(job.prepared, questions=tuple(asked)))


def sample_lines(run: Path) -> list[SampleLine]:
    return list(sample_lines_in((run / "metrics.jsonl").read_text()))


def training_lines(run: Path) -> list[dict[str, JsonValue]]:
    """The lines of metrics.jsonl that are no answers."""
    return [line for line in lines_of(run) if "samples" not in line]


def prompt_of(tokenizer: Path, *turns: tuple[str, str]) -> list[int]:
    """What transformers makes of the turns with a directory's tokenizer, for an answer to follow."""
    template = AutoTokenizer.from_pretrained(tokenizer).apply_chat_template
    said = [{"role": role, "content": content} for role, content in turns]
    return cast("list[int]", template(said, add_generation_prompt=True, return_dict=False))


def generated(checkpoint: Path, model: torch.nn.Module, question: str, most: int = 12) -> str:
    """What plain transformers answers with a checkpoint's tokenizer and generation config."""
    ids = torch.tensor([prompt_of(checkpoint, ("user", question))])
    said = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_config=GenerationConfig.from_pretrained(checkpoint),
        do_sample=False,
        max_new_tokens=most,
    )
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return str(tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True)).strip()


@pytest.mark.parametrize("way", [LORA, FULL], ids=["lora", "full"])
def test_answers_are_those_that_transformers_gives_with_the_checkpoint(
    tiny_model: Path, tmp_path: Path, way: Fields
) -> None:
    fields: Fields = {**way, **ASKED, "learning_rate": 0.02}
    train_here(asking(job_of(tiny_model, tmp_path, fields)))

    before, *after = sample_lines(tmp_path)
    assert (before.step, before.checkpoint) == (0, None)
    assert [line.checkpoint for line in after] == ["epoch-0", "epoch-1"]
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert [each.answer for each in before.samples] == [
        generated(tmp_path / "epoch-0", base, str(prompt)) for prompt in PROMPTS
    ]
    for line in after:
        checkpoint = tmp_path / str(line.checkpoint)
        loader = AutoPeftModelForCausalLM if way is LORA else AutoModelForCausalLM
        model = loader.from_pretrained(str(checkpoint)).eval()
        assert [each.prompt for each in line.samples] == PROMPTS
        assert [each.answer for each in line.samples] == [
            generated(checkpoint, model, str(prompt)) for prompt in PROMPTS
        ]
    answers = {tuple(each.answer for each in line.samples) for line in (before, *after)}
    assert len(answers) == 3, "or the comparison says nothing"


@pytest.fixture(scope="module")
def with_dropout(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with dropout in its attention, so that training draws random numbers."""
    copy = shutil.copytree(tiny_model, tmp_path_factory.mktemp("models") / "with-dropout")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.1}))
    return copy


@pytest.mark.parametrize("way", [DROPOUT, FULL], ids=["lora", "full"])
def test_training_is_the_same_to_the_bit_with_and_without_answers(
    with_dropout: Path, tmp_path: Path, way: Fields
) -> None:
    quiet, asked = tmp_path / "quiet", tmp_path / "asked"
    train_here(job_of(with_dropout, quiet, way, num_epochs=2, eval_first=True))
    train_here(asking(job_of(with_dropout, asked, {**way, **ASKED})))

    assert len(sample_lines(asked)) == 3
    assert training_lines(asked) == training_lines(quiet)
    assert saved_in(asked) == saved_in(quiet) == {"epoch-0", "epoch-1"}
    for checkpoint in saved_in(quiet):
        assert files_of(asked / checkpoint) == files_of(quiet / checkpoint)


def test_a_run_that_is_resumed_has_the_same_answers_and_knows_those_of_the_base(
    with_dropout: Path, tmp_path: Path
) -> None:
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    train_here(asking(job_of(with_dropout, through, {**DROPOUT, **ASKED})))
    train_here(asking(job_of(with_dropout, stopped, {**DROPOUT, **ASKED})), stop_after=8)
    records = train_here(asking(job_of(with_dropout, stopped, {**DROPOUT, **ASKED})))

    assert training_lines(stopped) == training_lines(through)
    assert [(line.step, line.samples) for line in sample_lines(stopped)] == [
        (line.step, line.samples) for line in sample_lines(through)
    ]
    before, *_, last = sample_lines(through)
    shown = records[-1].samples
    assert [each.base_answer for each in shown] == [each.answer for each in before.samples]
    assert [each.answer for each in shown] == [each.answer for each in last.samples]
    assert with_record(FineTuneJobStatus(), records[-1]).samples == shown


def test_of_two_devices_with_a_copy_each_the_first_answers(tiny_model: Path, tmp_path: Path) -> None:
    quiet, asked = tmp_path / "quiet", tmp_path / "asked"
    train_in_processes(
        job_of(tiny_model, quiet, LORA, num_devices=2, num_epochs=2, eval_first=True),
        asking(job_of(tiny_model, asked, {**LORA, **ASKED}, num_devices=2)),
    )

    assert [len(line.samples) for line in sample_lines(asked)] == [2, 2, 2]
    assert training_lines(asked) == training_lines(quiet)


def test_a_question_that_the_model_cannot_take_is_told_of_and_training_goes_on(
    tiny_model: Path, tmp_path: Path
) -> None:
    job = job_of(tiny_model, tmp_path, LORA, num_epochs=1)
    broken = Question("What?", None, (10**6,))
    records = train_here(replace(job, prepared=replace(job.prepared, questions=(broken,))))

    assert len(column(tmp_path, "loss")) == job.prepared.numbers.total_steps
    (warning,) = records[-1].warnings
    assert warning.startswith("sample_prompts: 1 of 1 were not answered after step ")
    assert "index out of range" in warning


@pytest.mark.parametrize(
    ("elapsed", "spent", "allowed"),
    [(0, 0, 30), (0, 4, 26), (200, 8, 22), (600, 8, 52), (600, 65, -5), (36_000, 600, MOST_SECONDS)],
)
def test_answers_take_a_tenth_of_the_time_at_most_but_for_the_first_seconds(
    elapsed: float, spent: float, allowed: float
) -> None:
    assert allowance(elapsed, spent) == pytest.approx(allowed)


def slow(model: Path, run: Path, clock: Iterator[int]) -> Sampler:
    """What asks the tiny model by a clock of its own."""
    job = asking(job_of(model, run, {**LORA, **ASKED}))
    loaded = load(job.start, torch.device("cpu"))
    forward, *_ = set_up(job, loaded, OneDevice(torch.device("cpu")))
    return replace(sampler_of(job, loaded, forward), clock=lambda: float(next(clock)))


def test_what_there_is_no_time_for_is_left_out(tiny_model: Path, tmp_path: Path) -> None:
    sampler = slow(tiny_model, tmp_path, itertools.count(0, 9))
    answers = sampler.ask()

    assert answers is not None
    assert (len(answers.answers), answers.left_out, answers.problem) == (1, 1, None)
    again = sampler.ask()
    assert again is not None
    assert (len(again.answers), again.left_out) == (0, 2), "the first ones have taken it all"
    assert sampler.model.training


TURNS = [
    ("user", "Ping?"),
    ("assistant", "Pong."),
    ("user", "And again?"),
    ("assistant", "Pong again."),
]
CONVERSATION: list[JsonValue] = [{"role": role, "content": content} for role, content in TURNS]
LABELLED: Fields = {"classifier_config": {"label_tokens": ["[[a]]", "[[b]]"]}}


@pytest.mark.parametrize(
    ("fields", "rows", "expected"),
    [
        ({}, [{"messages": CONVERSATION}, {"messages": CONVERSATION[:2]}], ["Pong again.", "Pong."]),
        ({"task": "instruction_tuning"}, [{"messages": CONVERSATION}] * 2, ["Pong again."] * 2),
        (
            {"preference_tuning_config": {}},
            [{"chosen": CONVERSATION[:2], "rejected": [CONVERSATION[0], CONVERSATION[3]]}] * 2,
            ["Pong."] * 2,
        ),
        (
            LABELLED,
            [
                {"messages": [CONVERSATION[0], {"role": "assistant", "content": label}]}
                for label in ("[[b]]", "[[a]]")
            ],
            ["[[b]]", "[[a]]"],
        ),
    ],
    ids=["causal_lm", "instruction_tuning", "preference_tuning", "classification"],
)
def test_of_validation_rows_all_before_the_last_answer_is_asked(
    tiny_model: Path, tmp_path: Path, fields: Fields, rows: list[JsonValue], expected: list[str]
) -> None:
    (tmp_path / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    job = job_of(
        tiny_model,
        tmp_path / "run",
        {**LORA, **fields},
        sample_prompts=2,
        valid_path=str(tmp_path / "valid.jsonl"),
    )
    asked = asking(job).prepared.questions

    assert [each.expected for each in asked] == expected
    for question in asked:
        before = TURNS[:3] if question.expected == "Pong again." else TURNS[:1]
        assert question.prompt == before[-1][1]
        assert list(question.input_ids) == prompt_of(tiny_model, *before)


def test_a_question_that_is_too_long_is_left_out_with_a_remark(tiny_model: Path, tmp_path: Path) -> None:
    spec = job_of(tiny_model, tmp_path, LORA, sample_prompts=["Ping? " * 300, "Ping?"]).prepared.spec
    asked, remarks = questions(spec, task_of(spec).chat(load_tokenizer(spec)), 256)

    assert [each.prompt for each in asked] == ["Ping?"]
    (remark,) = remarks
    assert remark.startswith("spec.sample_prompts[0]: has ")
    assert remark.endswith("which with an answer are more than the model's 256; it is not asked")


def test_rows_are_asked_for_only_where_there_are_some(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(FineTuneError) as refused:
        job_of(tiny_model, tmp_path, LORA, sample_prompts=2, valid_path=None)

    assert refused.value.failure_class is FailureClass.INVALID_SPEC
    assert refused.value.problems == (
        "spec.sample_prompts: asks for validation rows, and there is no spec.valid_path; list the prompts",
    )
