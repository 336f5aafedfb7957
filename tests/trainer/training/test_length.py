"""When a run ends, and when it is validated: `max_steps`, `eval_steps`, `early_stopping_patience`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from pydantic import JsonValue
from tests.trainer.training_jobs import (
    FULL,
    LORA,
    Course,
    Fields,
    column,
    files_of,
    job_of,
    lines_of,
    saved_in,
    some_rows,
    train_here,
    train_in_processes,
)
from transformers import (
    EarlyStoppingCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_cosine_schedule_with_warmup,
)

from finetune_api.status import ProgressRecord
from finetune_trainer.storage.run_directory import RunDirectory

THREE_STEPS: Fields = {"train_batch_size_per_device": 2, "gradient_accumulation_steps": 4}
"""An epoch of three."""
DROPOUT: Fields = LORA | {"lora_config": {"r": 8, "lora_dropout": 0.1}} | THREE_STEPS
OVERFITTING: Fields = (
    FULL | THREE_STEPS | {"learning_rate": 1e-2, "num_epochs": 6, "num_checkpoints_to_keep": 1}
)
"""Learning random rows by heart makes other random rows ever less likely."""

Line = dict[str, JsonValue]


def validations(run: Path) -> list[Line]:
    return [line for line in lines_of(run) if "evalLoss" in line]


def steps(run: Path) -> list[Line]:
    return [line for line in lines_of(run) if "loss" in line]


def result(run: Path) -> ProgressRecord:
    record = RunDirectory.open(str(run)).result()
    assert record is not None
    return record


# max_steps


@pytest.fixture(scope="module")
def five_steps(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch and two thirds."""
    run = tmp_path_factory.mktemp("five-steps") / "run"
    train_here(job_of(tiny_model, run, DROPOUT, max_steps=5))
    return run


def test_a_run_ends_after_so_many_steps_with_a_validation_and_a_checkpoint(five_steps: Path) -> None:
    assert [line["step"] for line in steps(five_steps)] == [1, 2, 3, 4, 5]
    assert [(line["step"], line["epoch"], line["checkpoint"]) for line in validations(five_steps)] == [
        (3, 1.0, "epoch-0"),
        (5, 1.6667, "epoch-1"),
    ]
    assert saved_in(five_steps) == {"epoch-0", "epoch-1"}
    record = result(five_steps)
    assert record.progress is not None
    assert (record.progress.step, record.progress.epochs, record.progress.percent) == (5, "1/2", 100)
    assert [(each.name, each.epoch, each.step) for each in record.checkpoints] == [
        ("epoch-0", 1, 3),
        ("epoch-1", 1, 5),
    ]
    assert not record.stopped_early


def test_its_learning_rate_is_that_of_a_schedule_of_so_many_steps(five_steps: Path) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = get_cosine_schedule_with_warmup(optimizer, 2, 5)
    expected = []
    for _ in range(5):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()

    assert column(five_steps, "learningRate") == expected


def test_its_steps_are_those_of_a_run_of_whole_epochs(tiny_model: Path, tmp_path: Path) -> None:
    constant: Fields = DROPOUT | {"lr_scheduler_type": "constant"}
    train_here(job_of(tiny_model, tmp_path / "cut", constant, max_steps=5))
    train_here(job_of(tiny_model, tmp_path / "whole", constant, num_epochs=2))

    assert steps(tmp_path / "cut") == steps(tmp_path / "whole")[:5]
    assert files_of(tmp_path / "cut/epoch-0", card=False) == files_of(tmp_path / "whole/epoch-0", card=False)


@pytest.mark.parametrize("stop", [2, 4])
def test_it_resumes_bit_for_bit(tiny_model: Path, tmp_path: Path, five_steps: Path, stop: int) -> None:
    train_here(job_of(tiny_model, tmp_path, DROPOUT, max_steps=5), stop_after=stop)
    train_here(job_of(tiny_model, tmp_path, DROPOUT, max_steps=5))

    assert lines_of(tmp_path) == lines_of(five_steps)
    assert files_of(tmp_path / "epoch-1") == files_of(five_steps / "epoch-1")


# eval_steps


@pytest.fixture(scope="module")
def plain(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs of three steps."""
    run = tmp_path_factory.mktemp("plain") / "run"
    train_here(job_of(tiny_model, run, DROPOUT))
    return run


@pytest.fixture(scope="module")
def validated(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, validated after every two steps too."""
    run = tmp_path_factory.mktemp("validated") / "run"
    train_here(job_of(tiny_model, run, DROPOUT, eval_steps=2))
    return run


def test_a_run_is_validated_every_n_steps_besides_and_saved_at_epochs_alone(validated: Path) -> None:
    assert [(line["step"], line["checkpoint"]) for line in validations(validated)] == [
        (2, None),
        (3, "epoch-0"),
        (4, None),
        (6, "epoch-1"),
        (8, None),
        (9, "epoch-2"),
    ]
    assert saved_in(validated) == {"epoch-0", "epoch-1", "epoch-2"}


def test_what_is_trained_is_the_same_bit_for_bit(validated: Path, plain: Path) -> None:
    assert steps(validated) == steps(plain)
    assert [line for line in validations(validated) if line["checkpoint"]] == validations(plain)
    for name in saved_in(plain):
        assert files_of(validated / name) == files_of(plain / name)


def test_a_validation_between_epochs_is_that_of_the_model_after_these_steps(
    tiny_model: Path, tmp_path: Path
) -> None:
    constant: Fields = DROPOUT | {"lr_scheduler_type": "constant", "num_warmup_steps": 1}
    train_here(job_of(tiny_model, tmp_path / "between", constant, num_epochs=1, eval_steps=2))
    train_here(job_of(tiny_model, tmp_path / "end", constant, max_steps=2))

    between, _ = validations(tmp_path / "between")
    [at_the_end] = validations(tmp_path / "end")
    assert between["step"] == at_the_end["step"] == 2
    assert between["evalLoss"] == at_the_end["evalLoss"]


def test_the_last_validation_is_in_the_progress(tiny_model: Path, tmp_path: Path) -> None:
    records = train_here(job_of(tiny_model, tmp_path, DROPOUT, num_epochs=1, eval_steps=2))

    [after_two, *_] = [each for each in records if each.progress and each.progress.step == 2]
    assert after_two.evaluation is not None
    assert after_two.evaluation.epoch == 0.6667
    assert after_two.checkpoints == []


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_validations_between_epochs_resume_bit_for_bit(
    tiny_model: Path, tmp_path: Path, validated: Path, stop: int
) -> None:
    train_here(job_of(tiny_model, tmp_path, DROPOUT, eval_steps=2), stop_after=stop)
    train_here(job_of(tiny_model, tmp_path, DROPOUT, eval_steps=2))

    assert lines_of(tmp_path) == lines_of(validated)
    assert files_of(tmp_path / "epoch-2") == files_of(validated / "epoch-2")


def test_without_validation_rows_nothing_is_validated(tiny_model: Path, tmp_path: Path) -> None:
    train_here(job_of(tiny_model, tmp_path, DROPOUT, validation=None, num_epochs=1, eval_steps=1))

    assert validations(tmp_path) == []


# early_stopping_patience


@pytest.fixture(scope="module")
def overfitted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six epochs that nothing stops."""
    run = tmp_path_factory.mktemp("overfitted") / "run"
    train_here(job_of(tiny_model, run, OVERFITTING))
    return run


def epochs_of_transformers(losses: list[float], patience: int, directory: Path) -> int:
    """After how many epochs transformers' callback stops a run with these validation losses."""
    arguments = TrainingArguments(
        output_dir=str(directory),
        use_cpu=True,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    callback, state, control = EarlyStoppingCallback(patience), TrainerState(), TrainerControl()
    for epoch, loss in enumerate(losses, 1):
        callback.on_evaluate(arguments, state, control, {"eval_loss": loss})  # type: ignore[no-untyped-call]
        if state.best_metric is None or loss < state.best_metric:
            state.best_metric = loss
        if control.should_training_stop:
            return epoch
    return len(losses)


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_a_run_stops_where_transformers_would_and_keeps_the_best(
    tiny_model: Path, tmp_path: Path, overfitted: Path, patience: int
) -> None:
    losses = column(overfitted, "evalLoss")
    expected = epochs_of_transformers(losses, patience, tmp_path / "arguments")
    assert expected < 6, "else nothing is tested"
    run = tmp_path / "run"
    records = train_here(job_of(tiny_model, run, OVERFITTING, early_stopping_patience=patience))

    assert lines_of(run) == [line for line in lines_of(overfitted) if int(str(line["step"])) <= 3 * expected]
    best = losses.index(min(losses[:expected]))
    assert saved_in(run) == {f"epoch-{best}"}
    record = result(run)
    assert record.progress is not None
    assert record.plan is not None
    assert (record.stopped_early, record.progress.step, record.plan.total_steps) == (True, 3 * expected, 18)
    assert record.progress.estimated_completion_time is None
    assert records[-1].stopped_early


def test_a_run_that_gets_better_to_its_end_is_not_stopped(tiny_model: Path, tmp_path: Path) -> None:
    rows = some_rows(21)
    train_here(job_of(tiny_model, tmp_path, DROPOUT, train=rows, validation=rows, early_stopping_patience=1))
    losses = column(tmp_path, "evalLoss")

    assert losses == sorted(losses, reverse=True)
    assert len(steps(tmp_path)) == 9
    assert not result(tmp_path).stopped_early


@pytest.mark.parametrize("stops", [[2], [3], [4], [5, 2]])
def test_a_run_that_was_interrupted_is_stopped_where_another_is(
    tiny_model: Path, tmp_path: Path, stops: list[int]
) -> None:
    patient: Fields = OVERFITTING | {"early_stopping_patience": 2}
    train_here(job_of(tiny_model, tmp_path / "undisturbed", patient))
    for stop in stops:
        train_here(job_of(tiny_model, tmp_path / "run", patient), stop_after=stop)
    train_here(job_of(tiny_model, tmp_path / "run", patient))

    assert result(tmp_path / "run").stopped_early
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "undisturbed")
    assert saved_in(tmp_path / "run") == saved_in(tmp_path / "undisturbed")


def test_a_run_that_died_after_the_checkpoint_that_stops_it_only_finishes(
    tiny_model: Path, tmp_path: Path
) -> None:
    patient: Fields = OVERFITTING | {"early_stopping_patience": 1, "num_checkpoints_to_keep": 9}
    train_here(job_of(tiny_model, tmp_path / "undisturbed", patient))
    run = shutil.copytree(tmp_path / "undisturbed", tmp_path / "run")
    (run / "result.json").unlink()
    train_here(job_of(tiny_model, run, patient))

    assert result(run).stopped_early
    assert lines_of(run) == lines_of(tmp_path / "undisturbed")


def test_validations_between_epochs_do_not_count(tiny_model: Path, tmp_path: Path, overfitted: Path) -> None:
    train_here(job_of(tiny_model, tmp_path, OVERFITTING, early_stopping_patience=2, eval_steps=1))
    expected = epochs_of_transformers(column(overfitted, "evalLoss"), 2, tmp_path / "arguments")

    assert len(steps(tmp_path)) == 3 * expected


def test_two_workers_stop_together(tiny_model: Path, tmp_path: Path) -> None:
    patient: Fields = OVERFITTING | {
        "early_stopping_patience": 1,
        "num_devices": 2,
        "gradient_accumulation_steps": 2,
    }
    train_in_processes(job_of(tiny_model, tmp_path, patient), course=Course())

    assert result(tmp_path).stopped_early
