"""A finished run that is trained for longer, by a run of its own that goes on from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
from pydantic import JsonValue
from tests.cli.command_line import small_job
from tests.trainer.training_jobs import column, files_of, lines_of, saved_in

from finetune_api.changed_fields import changed_field
from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.manifest import Manifest, read_manifest
from finetune_api.numbers import learning_rate_factor
from finetune_api.status import Phase, ProgressRecord
from finetune_trainer.local import LocalRun, extended, run_locally
from make_tiny_rows import make_tiny_rows

if TYPE_CHECKING:
    from finetune_trainer.plan.prepare import Prepared

QUESTION = {"role": "user", "content": "?"}
CONSTANT: dict[str, JsonValue] = {
    "lr_scheduler_type": "constant",
    "num_checkpoints_to_keep": 9,
    "lora_config": {"r": 4, "lora_dropout": 0.1},
}


@dataclass
class Listener:
    """Keeps what it is told."""

    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def prepared(self, prepared: Prepared) -> None:
        pass

    def progress(self, record: ProgressRecord) -> None:
        pass


def trained(manifest: Manifest, storage: Path, *, restart: bool = False) -> tuple[Path, LocalRun, list[str]]:
    """The run directory of a job that is trained here, how it ended, and what was said."""
    listener = Listener()
    ended = run_locally(manifest, storage=str(storage), devices=None, observer=listener, restart=restart)
    assert ended.status.phase is Phase.SUCCEEDED, ended.status.message
    return Path(ended.run_directory), ended, listener.lines


def job(directory: Path, model: Path, **fields: JsonValue) -> Manifest:
    """Epochs of three steps, with dropout, whose learning rate is constant."""
    directory.mkdir(exist_ok=True)
    file = small_job(
        directory,
        model,
        **{
            "train_path": f"{directory}/train.jsonl",
            "valid_path": f"{directory}/valid.jsonl",
            **CONSTANT,
            **fields,
        },
    )
    return read_manifest(file)


def worse_by_each_epoch(directory: Path) -> dict[str, JsonValue]:
    """Validation rows that are ever less likely, the more is trained on the others."""
    file, random = directory / "unlike.jsonl", Random(0)
    answers = ["".join(random.choice("0123456789#@$") for _ in range(40)) for _ in range(4)]
    file.write_text(
        "".join(
            json.dumps(
                {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": each}]}
            )
            + "\n"
            for each in answers
        )
    )
    return {"valid_path": str(file), "learning_rate": 0.1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("extending")


@pytest.fixture(scope="module")
def short(data: Path, tiny_model: Path) -> Path:
    """A run of two epochs."""
    return trained(job(data, tiny_model), data / "runs")[0]


@pytest.fixture(scope="module")
def long(data: Path, tiny_model: Path) -> Path:
    """A run of four."""
    return trained(job(data, tiny_model, num_epochs=4), data / "runs")[0]


@pytest.fixture(scope="module")
def extension(short: Path, data: Path) -> tuple[Path, LocalRun, list[str]]:
    """The run of two that is trained for two more."""
    return trained(extended(str(short), 2), data / "runs")


def assert_same_but_for_the_beginning(run: Path, other: Path, *checkpoints: str) -> None:
    assert lines_of(run) == lines_of(other)
    assert saved_in(run) == set(checkpoints)
    for name in checkpoints:
        assert files_of(run / name, card=False) == files_of(other / name, card=False)


def test_two_epochs_and_two_more_are_four_bit_for_bit(
    extension: tuple[Path, LocalRun, list[str]], long: Path
) -> None:
    run, ended, _ = extension

    assert_same_but_for_the_beginning(run, long, "epoch-1", "epoch-2", "epoch-3")
    plan, progress = ended.status.plan, ended.status.progress
    assert plan is not None
    assert progress is not None
    assert (plan.total_epochs, plan.total_steps, plan.checkpoint_epochs) == (4, 12, [0, 1, 2, 3])
    assert (progress.step, progress.epochs, progress.tokens_trained) == (12, "4/4", 4 * plan.tokens)


def test_it_is_a_run_of_its_own_beside_the_old_one_which_stays_as_it_was(
    extension: tuple[Path, LocalRun, list[str]], short: Path
) -> None:
    run, _, said = extension

    assert run.parent == short.parent
    assert run != short
    assert saved_in(short) == {"epoch-0", "epoch-1"}
    assert lines_of(short) == lines_of(run)[: len(lines_of(short))]
    assert json.loads((short / "result.json").read_text())["progress"]["epochs"] == "2/2"
    assert (
        f"going on from {short}/epoch-1, after step 6: the learning rate is 0.001 now, as in a run of 12"
        " steps (constant)"
    ) in said


def test_a_run_that_went_on_is_gone_on_from_in_turn(
    extension: tuple[Path, LocalRun, list[str]], data: Path, tiny_model: Path
) -> None:
    five = trained(extended(str(extension[0]), 1), data / "runs")[0]
    other = trained(job(data, tiny_model, num_epochs=5), data / "runs")[0]

    assert_same_but_for_the_beginning(five, other, "epoch-3", "epoch-4")


@pytest.mark.parametrize("scheduler", ["cosine", "linear"])
def test_the_schedule_of_the_longer_run_is_followed_from_where_it_is(
    data: Path, tiny_model: Path, scheduler: str
) -> None:
    short = trained(job(data, tiny_model, lr_scheduler_type=scheduler), data / "runs")[0]
    run, _, said = trained(extended(str(short), 2), data / "runs")
    rates = column(run, "learningRate")

    assert rates[:6] == [1e-3 * learning_rate_factor(scheduler, step, 1, 6) for step in range(6)]  # type: ignore[arg-type]
    assert rates[6:] == [1e-3 * learning_rate_factor(scheduler, step, 1, 12) for step in range(6, 12)]  # type: ignore[arg-type]
    assert rates[6] > rates[5]
    assert f"the learning rate is {rates[6]:.4g} now, as in a run of 12 steps ({scheduler})" in said[-1]


def test_every_parameter_of_a_model_goes_on_too(data: Path, tiny_model: Path) -> None:
    full = {"lora_config": None, "learning_rate": 1e-4}
    short = trained(job(data, tiny_model, **full), data / "runs")[0]
    run = trained(extended(str(short), 1), data / "runs")[0]
    long = trained(job(data, tiny_model, num_epochs=3, **full), data / "runs")[0]

    assert_same_but_for_the_beginning(run, long, "epoch-1", "epoch-2")


def test_a_run_that_max_steps_ended_in_an_epoch_goes_on_in_it(data: Path, tiny_model: Path) -> None:
    cut = trained(job(data, tiny_model, num_epochs=None, max_steps=4), data / "runs")[0]
    run, ended, _ = trained(extended(str(cut), 1), data / "runs")
    long = trained(job(data, tiny_model, num_epochs=None, max_steps=7), data / "runs")[0]

    def without_the_cut(of: Path) -> list[dict[str, JsonValue]]:
        return [line for line in lines_of(of) if (line["step"], "evalLoss" in line) != (4, True)]

    assert without_the_cut(run) == lines_of(long)
    assert [line["checkpoint"] for line in lines_of(run) if line["step"] == 4 and "evalLoss" in line] == [
        None
    ]
    assert ended.status.plan is not None
    assert ended.status.plan.total_steps == 7
    assert saved_in(run) == {"epoch-1", "epoch-2"}
    assert (run / "epoch-2/adapter_model.safetensors").read_bytes() == (
        long / "epoch-2/adapter_model.safetensors"
    ).read_bytes()


def test_where_the_newest_checkpoint_was_not_kept_the_run_goes_on_from_an_earlier_one(
    data: Path, tiny_model: Path
) -> None:
    worse = worse_by_each_epoch(data) | {"num_checkpoints_to_keep": 1}
    short = trained(job(data, tiny_model, **worse), data / "runs")[0]
    assert saved_in(short) == {"epoch-0"}, "else nothing is tested"
    run, _, said = trained(extended(str(short), 1), data / "runs")
    long = trained(job(data, tiny_model, num_epochs=3, **worse), data / "runs")[0]

    assert lines_of(run) == lines_of(long)
    assert "after step 3 of 6, so that what came after is trained again: " in said[-1]


def test_a_run_that_was_stopped_early_goes_on_from_where_it_ended(data: Path, tiny_model: Path) -> None:
    patient = worse_by_each_epoch(data) | {"num_epochs": 8, "early_stopping_patience": 1}
    stopped, ended, _ = trained(job(data, tiny_model, **patient), data / "runs")
    assert ended.status.stopped_early
    assert ended.status.message is not None
    assert ended.status.message.startswith("stopped early after epoch 2: the last checkpoint had no lower")
    manifest = extended(str(stopped), 2)
    run, _, _ = trained(manifest, data / "runs")

    assert manifest.spec.num_epochs == 4
    assert len(column(run, "loss")) > len(column(stopped, "loss"))


def test_fields_can_change_that_leave_the_parameters_and_the_rows_as_they_are(
    short: Path, data: Path
) -> None:
    changes = [changed_field("spec.weight_decay=0.5"), changed_field("spec.learning_rate=5e-4")]
    run = trained(extended(str(short), 1, changes), data / "runs")[0]
    same = trained(extended(str(short), 1, changes[1:]), data / "runs")[0]

    assert column(run, "learningRate")[6:] == [5e-4] * 3
    assert column(run, "loss")[:7] == column(same, "loss")[:7]
    assert column(run, "loss")[7:] != column(same, "loss")[7:]


# What cannot go on


def problems_of(manifest: Manifest, storage: Path) -> tuple[FailureClass, tuple[str, ...]]:
    """What is wrong with a job, of which nothing is written."""
    with pytest.raises(FineTuneError) as raised:
        run_locally(manifest, storage=str(storage), devices=None, observer=Listener())
    assert not storage.exists()
    return raised.value.failure_class, raised.value.problems


SAID = "a run goes on with the model, the parameters and the order of rows that it began with"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"lora_config": {"r": 8, "lora_dropout": 0.1}}, "spec.lora_config.r: is 8, and 4 in"),
        ({"lora_config": None, "learning_rate": 1e-4}, "spec.lora_config: is absent, and a map in"),
        ({"task": "causal_lm"}, "spec.task: is causal_lm, and instruction_tuning in"),
        ({"seed": 7}, "spec.seed: is 7, and 42 in"),
    ],
)
def test_other_parameters_and_another_order_of_rows_are_told_by_field(
    short: Path, data: Path, tiny_model: Path, tmp_path: Path, fields: dict[str, JsonValue], problem: str
) -> None:
    other = job(data, tiny_model, num_epochs=4, resume_from=str(short), **fields)

    assert problems_of(other, tmp_path / "runs") == (
        FailureClass.INVALID_SPEC,
        (f"{problem} {short}; {SAID}",),
    )


def test_another_model_is_told(
    short: Path, data: Path, tied_tiny_model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    other = job(data, tied_tiny_model, num_epochs=4, resume_from=str(short))

    assert problems_of(other, tmp_path / "runs")[1] == (
        f"spec.model_id: is {tied_tiny_model}, and {tiny_model} in {short}; {SAID}",
    )


def test_other_rows_are_told(short: Path, data: Path, tiny_model: Path, tmp_path: Path) -> None:
    make_tiny_rows(tmp_path / "others.jsonl", 12, seed=9)
    other = job(data, tiny_model, num_epochs=4, resume_from=str(short), train_path=f"{tmp_path}/others.jsonl")

    assert problems_of(other, tmp_path / "runs") == (
        FailureClass.INVALID_DATA,
        (
            (
                f"spec.train_path: the rows are not those that {short}/epoch-1 was trained on; give the same"
                " rows, or leave spec.resume_from out"
            ),
        ),
    )


def test_steps_of_another_size_are_told(short: Path, data: Path, tiny_model: Path, tmp_path: Path) -> None:
    other = job(data, tiny_model, num_epochs=4, resume_from=str(short), train_batch_size_per_device=2)

    assert problems_of(other, tmp_path / "runs")[1] == (
        (
            f"spec.train_batch_size_per_device: a step is of 2 rows, and of 4 in {short}/epoch-1; rows x"
            " num_devices x gradient_accumulation_steps must be the same"
        ),
    )


@pytest.mark.parametrize("length", [{"num_epochs": 2}, {"max_steps": 6}])
def test_a_length_that_is_trained_already_is_told(
    short: Path, data: Path, tiny_model: Path, tmp_path: Path, length: dict[str, JsonValue]
) -> None:
    other = job(data, tiny_model, resume_from=str(short), **{"num_epochs": None, **length})

    assert problems_of(other, tmp_path / "runs")[1] == (
        (
            f"spec.{next(iter(length))}: {short}/epoch-1 was trained for 6 steps already, and this run has 6"
            " in all; give more"
        ),
    )


def test_a_checkpoint_may_be_named_and_another_place_is_told(
    short: Path, data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run, _, said = trained(
        job(data, tiny_model, num_epochs=2, resume_from=f"{short}/epoch-0", custom_model_tag="x"),
        data / "runs",
    )
    nowhere = job(data, tiny_model, num_epochs=4, resume_from=f"{short}/epoch-7")

    assert lines_of(run) == lines_of(short)
    assert f"going on from {short}/epoch-0, after step 3 of 6" in said[-1]
    assert problems_of(nowhere, tmp_path / "runs") == (
        FailureClass.INVALID_SPEC,
        (
            (
                f"spec.resume_from: {short}/epoch-7 is neither a run's directory, with its job.yaml, nor a"
                " complete checkpoint in one"
            ),
        ),
    )


def test_only_a_finished_run_is_extended(short: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for file in ("job.yaml", "checkpoints.json"):
        (unfinished / file).write_text((short / file).read_text())
    for path, problem in (
        (tmp_path, "is not the directory of a run: it has no job.yaml"),
        (unfinished, "has not finished; `finetune run` with its manifest resumes it"),
    ):
        with pytest.raises(FineTuneError) as raised:
            extended(str(path), 1)
        assert raised.value.problems == (f"{path}: {problem}",)
