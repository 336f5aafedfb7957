"""Sample answers: those that plain transformers gives, and a training that does not notice."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from pydantic import JsonValue
from safetensors.torch import load as tensors_in
from tests.trainer.training_jobs import (
    FULL,
    LORA,
    Fields,
    column,
    eight_rows_a_step,
    files_of,
    in_processes,
    job_of,
    lines_of,
    saved_in,
    spec_of,
    train_here,
    train_in_processes,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.record import with_record
from finetune_api.sharding import COPIES, Sharding
from finetune_api.status import FineTuneJobStatus
from finetune_trainer.data.questions import Question, questions
from finetune_trainer.model.load import load_tokenizer
from finetune_trainer.parallel.parallel import Parallel, parallel_of
from finetune_trainer.plan.prepare import prepare
from finetune_trainer.report.metrics import SampleLine, sample_lines_in
from finetune_trainer.report.page import page_of
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.tasks.objective import base_of
from finetune_trainer.tasks.task import task_of
from finetune_trainer.training.job import TrainingJob
from finetune_trainer.training.samples import MOST_SECONDS, Sampler, Together, allowance, sampler_of
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


IN_PARTS: dict[str, Sharding] = {
    "parts": Sharding(kind="fsdp"),
    "gathered until the backward pass": Sharding(kind="fsdp", reshard=False),
    "offloaded": Sharding(kind="fsdp", cpu_offload=True),
}
BROKEN = Question("What?", None, (10**6,))
"""No model knows the token."""


@pytest.mark.parametrize("way", ["lora", "full"])
def test_devices_that_hold_parts_give_the_answers_of_one_device_and_train_as_without(
    tiny_model: Path, tied_tiny_model: Path, tmp_path: Path, way: str
) -> None:
    model, fields, noisy = (tiny_model, LORA, DROPOUT) if way == "lora" else (tied_tiny_model, FULL, FULL)

    def job(name: str, fields: Fields, sharding: Sharding = IN_PARTS["parts"]) -> TrainingJob:
        steps = eight_rows_a_step(1 if sharding is COPIES else 2)
        given = {**fields, **steps, "num_epochs": 2, "eval_first": False}
        return job_of(model, tmp_path / name, given, sharding=sharding)

    failing = job("failing", noisy)
    train_here(asking(job("one device", {**fields, **ASKED}, COPIES)))
    train_in_processes(
        *(asking(job(name, {**fields, **ASKED}, sharding)) for name, sharding in IN_PARTS.items()),
        job("quiet", noisy),
        asking(job("asked", {**noisy, **ASKED})),
        replace(failing, prepared=replace(failing.prepared, questions=(BROKEN,))),
    )

    expected = [line.samples for line in sample_lines(tmp_path / "one device")]
    assert [len(samples) for samples in expected] == [2, 2, 2]
    for name in IN_PARTS:
        assert [line.samples for line in sample_lines(tmp_path / name)] == expected
    for name in ("asked", "failing"):
        assert training_lines(tmp_path / name) == training_lines(tmp_path / "quiet")
        assert contents_of(tmp_path / name / "epoch-1") == contents_of(tmp_path / "quiet" / "epoch-1")
    assert [(line.samples, line.left_out) for line in sample_lines(tmp_path / "failing")] == [([], 1)] * 3


def contents_of(checkpoint: Path) -> dict[str, bytes | dict[str, bytes]]:
    """All files of a checkpoint; of those that hold tensors the tensors, which are in no fixed order."""
    return {
        name: {key: tensor.numpy().tobytes() for key, tensor in tensors_in(content).items()}
        if name.endswith(".safetensors")
        else content
        for name, content in files_of(checkpoint).items()
    }


def ask_by_a_clock_of_rank_0(job: TrainingJob, seconds: int, found: Path, rank: int, devices: int) -> None:
    """Asks on several ranks, and writes what each did. Rank 1 has all time, and would choose other tokens."""
    sampler, parallel = sampler_on(job, rank, devices)
    passes: list[None] = []
    clock = itertools.count(0, seconds) if rank == 0 else itertools.repeat(0)

    def turned(_: torch.nn.Module, __: object, output: CausalLMOutputWithPast) -> None:
        passes.append(None)
        if rank == 1:
            assert output.logits is not None
            output.logits = cast("torch.FloatTensor", -output.logits)

    base_of(sampler.model).register_forward_hook(turned)
    answers = replace(sampler, clock=lambda: float(next(clock))).ask()
    assert answers is not None
    did = len(passes), answers.left_out, [each.answer for each in answers.answers]
    everyone = parallel.gather(did)
    if rank == 0:
        found.write_text(json.dumps(everyone))


@pytest.mark.parametrize(
    ("seconds", "passes", "answered"), [(2, 12, 1), (3, 10, 0)], ids=["one answer", "cut off in the first"]
)
def test_of_devices_that_hold_parts_the_first_decides_on_tokens_and_time(
    tiny_model: Path, tmp_path: Path, seconds: int, passes: int, answered: int
) -> None:
    job = asking(job_of(tiny_model, tmp_path, {**LORA, **ASKED}, num_devices=2, sharding=IN_PARTS["parts"]))
    alone, _ = sampler_on(asking(job_of(tiny_model, tmp_path, {**LORA, **ASKED})), 0, 1)
    expected = alone.ask()
    work = partial(ask_by_a_clock_of_rank_0, job, seconds, tmp_path / "found.json")

    assert in_processes(2, work) == [0, 0]

    assert expected is not None
    did = [passes, 2 - answered, [each.answer for each in expected.answers[:answered]]]
    assert json.loads((tmp_path / "found.json").read_text()) == [did, did]


def test_a_want_of_memory_is_a_problem_alone_and_an_error_where_others_would_wait(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(**_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    sampler, _ = sampler_on(asking(job_of(tiny_model, tmp_path, {**LORA, **ASKED})), 0, 1)
    monkeypatch.setattr(sampler.model, "generate", exhausted)

    answers = sampler.ask()
    assert answers is not None
    assert (answers.left_out, answers.problem) == (2, "out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        replace(sampler, together=Together(agree=list, run=lambda work: work())).ask()
    assert sampler.model.training


def test_a_question_that_the_model_cannot_take_is_told_of_and_training_goes_on(
    tiny_model: Path, tmp_path: Path
) -> None:
    job = job_of(tiny_model, tmp_path, LORA, num_epochs=1)
    records = train_here(replace(job, prepared=replace(job.prepared, questions=(BROKEN,))))

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


def sampler_on(job: TrainingJob, rank: int, devices: int) -> tuple[Sampler, Parallel]:
    """What asks the model on a rank, which is not trained."""
    device = torch.device("cpu")
    loaded = load(job.start, device)
    parallel = parallel_of(rank, devices, device, job.start.sharding)
    forward, *_ = set_up(job, loaded, parallel)
    return sampler_of(job, loaded, forward), parallel


def slow(model: Path, run: Path, clock: Iterator[int]) -> Sampler:
    """What asks the tiny model by a clock of its own."""
    sampler, _ = sampler_on(asking(job_of(model, run, {**LORA, **ASKED})), 0, 1)
    return replace(sampler, clock=lambda: float(next(clock)))


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


def test_of_rows_that_are_held_out_the_first_ones_are_asked_in_the_order_of_their_files(
    tiny_model: Path, tmp_path: Path
) -> None:
    for name, count in (("a", 40), ("b", 20)):
        said = [[*CONVERSATION[:3], {"role": "assistant", "content": f"{name} {n}."}] for n in range(count)]
        (tmp_path / f"{name}.json").write_text(json.dumps([{"messages": each} for each in said]))
    fields: Fields = {
        "train_path": [{"path": f"{tmp_path}/a.json", "weight": 2}, {"path": f"{tmp_path}/b.json"}],
        "valid_path": None,
        "valid_fraction": 0.2,
    }
    ready = prepare(spec_of(tiny_model, LORA, **fields, sample_prompts=16))
    first = prepare(spec_of(tiny_model, LORA, **fields, sample_prompts=3))

    assert ready.validation is not None
    held = [ready.validation.row(index)[0].tolist() for index in range(len(ready.validation))]
    assert 3 < len(held) < 16
    asked = prompt_of(tiny_model, *TURNS[:3])
    assert [list(each.input_ids) for each in ready.questions] == [asked] * len(held)
    decode = AutoTokenizer.from_pretrained(tiny_model).decode
    rest = [ids[len(each.input_ids) :] for ids, each in zip(held, ready.questions, strict=True)]
    answers = [str(decode(ids, skip_special_tokens=True)).strip() for ids in rest]
    assert [each.expected for each in ready.questions] == answers
    assert {answer[0] for answer in answers} == {"a", "b"}
    assert first.questions == ready.questions[:3]
    too_few = f"spec.sample_prompts: 16 validation rows are to be asked, and there are {len(held)}"
    assert too_few in ready.warnings
    assert not any("are to be asked" in warning for warning in first.warnings)


def test_of_pairs_that_are_held_out_the_preferred_answers_are_expected(
    tiny_model: Path, tmp_path: Path
) -> None:
    pairs = [{"prompt": f"Ping {n}?", "chosen": f"Pong {n}.", "rejected": f"No {n}."} for n in range(20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    fields: Fields = {"train_path": f"{tmp_path}/pairs.jsonl", "valid_path": None, "valid_fraction": 0.3}

    ready = prepare(spec_of(tiny_model, LORA, **fields, task="preference_tuning", sample_prompts=3))

    assert ready.validation is not None
    held = [pairs[line - 1] for line in ready.validation.lines[:3]]
    assert [(each.prompt, each.expected) for each in ready.questions] == [
        (pair["prompt"], pair["chosen"]) for pair in held
    ]


def test_answers_in_conversations_that_end_with_the_same_question_stand_side_by_side(
    tiny_model: Path, tmp_path: Path
) -> None:
    said = [TURNS[:2], TURNS[:2], [*TURNS[:1], ("assistant", "No.")]]
    rows = [{"messages": [{"role": who, "content": what} for who, what in turns]} for turns in said]
    (tmp_path / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    valid: Fields = {"sample_prompts": 3, "valid_path": str(tmp_path / "valid.jsonl")}

    records = train_here(asking(job_of(tiny_model, tmp_path / "run", {**LORA, **ASKED, **valid})))

    before, *_, last = sample_lines(tmp_path / "run")
    assert [(each.prompt, each.base_answer, each.answer, each.expected) for each in records[-1].samples] == [
        ("Ping?", base.answer, tuned.answer, expected)
        for base, tuned, expected in zip(before.samples, last.samples, ["Pong.", "Pong.", "No."], strict=True)
    ]
    assert page_of(RunDirectory.open(str(tmp_path / "run"))).count("<dt>expected</dt>") == 3


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
        "spec.sample_prompts: as a number needs spec.valid_path or spec.valid_fraction; or list the prompts",
    )
