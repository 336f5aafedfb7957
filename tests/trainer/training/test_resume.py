"""A run that is interrupted and resumed ends like an undisturbed one: the same metrics, the same bytes."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest
import torch
from tests.trainer.training_jobs import (
    FULL,
    LORA,
    TRAINING_ROWS,
    Course,
    Fields,
    column,
    files_of,
    job_of,
    lines_of,
    rows_of,
    saved_in,
    some_rows,
    train_here,
    train_in_processes,
    wait_for_saving,
)

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.status import ProgressRecord
from finetune_trainer.data.packing import pack
from finetune_trainer.data.tokens import RowsInMemory
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.training.job import TrainingJob, Worker
from finetune_trainer.training.loop import train
from make_tiny_model import make_tiny_model

WAYS: dict[str, Fields] = {
    "lora": LORA | {"lora_config": {"r": 8, "lora_dropout": 0.1}},
    "full": FULL,
    "full, saved in bf16": {"export_dtype": "bf16"},
}
ACCUMULATED: Fields = {"train_batch_size_per_device": 2, "gradient_accumulation_steps": 4, "eval_first": True}
"""Three steps an epoch, nine in all."""


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with dropout in its attention, so that full training draws random numbers too."""
    copy = shutil.copytree(tiny_model, tmp_path_factory.mktemp("models") / "with-dropout")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.1}))
    return copy


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> Fields:
    return WAYS[request.param] | ACCUMULATED


@pytest.fixture(scope="module")
def undisturbed(model: Path, way: Fields, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train_here(job_of(model, run, way))
    return run


def assert_same_run(run: Path, undisturbed: Path) -> None:
    assert lines_of(run) == lines_of(undisturbed)
    assert saved_in(run) == saved_in(undisturbed)
    for checkpoint in saved_in(undisturbed):
        assert files_of(run / checkpoint) == files_of(undisturbed / checkpoint)


@pytest.mark.parametrize(
    ("stops", "newest"),
    [([1], "snapshot-1"), ([3], "epoch-0"), ([4], "snapshot-4"), ([8], "snapshot-8"), ([2, 3], "snapshot-5")],
    ids=["first step", "end of an epoch", "middle of an epoch", "last step but one", "twice"],
)
def test_a_stopped_run_resumes_bit_for_bit(
    model: Path, way: Fields, undisturbed: Path, tmp_path: Path, stops: list[int], newest: str
) -> None:
    for steps in stops:
        train_here(job_of(model, tmp_path, way), stop_after=steps)
    assert RunDirectory.open(str(tmp_path)).newest() == newest
    records = train_here(job_of(model, tmp_path, way))
    assert_same_run(tmp_path, undisturbed)
    assert records[-1].progress is not None
    assert records[-1].progress.tokens_trained == sum(column(undisturbed, "tokens"))


def test_a_run_that_is_killed_resumes_from_a_checkpoint_that_is_complete(
    model: Path, way: Fields, undisturbed: Path, tmp_path: Path
) -> None:
    train_in_processes(job_of(model, tmp_path, way), course=Course(die_after=7), ending=-signal.SIGKILL)
    job = job_of(model, tmp_path, way)
    # That of step 6 may have been on its way, and that of step 3 was complete when it began.
    assert job.start.resume_from in ("epoch-0", "epoch-1")
    train_here(job)
    assert_same_run(tmp_path, undisturbed)


def test_a_run_killed_while_it_writes_a_checkpoint_resumes_from_the_one_before(
    model: Path, way: Fields, undisturbed: Path, tmp_path: Path
) -> None:
    train_in_processes(
        job_of(model, tmp_path, way), course=Course(die_writing_after=4), ending=-signal.SIGXFSZ
    )
    assert saved_in(tmp_path) == {"epoch-0", ".epoch-1.partial"}
    job = job_of(model, tmp_path, way)
    assert job.start.resume_from == "epoch-0"
    train_here(job)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize(
    ("rank", "vocabulary"),
    [(8, 1024), (1, 1024), (4, 300)],
    ids=["in the weights", "in the tokenizer", "in the optimizer's state"],
)
def test_a_disk_that_is_full_ends_the_run_and_with_space_again_it_resumes(
    tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]], rank: int, vocabulary: int
) -> None:
    model = make_tiny_model(tmp_path / "model", vocab_size=vocabulary)
    # The second of three is written while training goes on.
    fields: Fields = {"lora_config": {"r": rank}, "num_epochs": 3}
    rows = rows_of([9, 30, 20, 12, 7, 25, 14, 8], vocabulary=vocabulary)

    def job(name: str) -> TrainingJob:
        return job_of(model, tmp_path / name, fields, train=rows, validation=None)

    with ExitStack() as disk:

        def fill_up(record: ProgressRecord) -> None:
            if record.progress is not None and record.progress.step == 3:
                wait_for_saving()
                disk.enter_context(full_disk())

        with pytest.raises(FineTuneError, match=r"epoch-1.*: File too large") as raised:
            train(job("run"), Worker(0, 1, torch.device("cpu"), fill_up, lambda: False))
    assert raised.value.failure_class is FailureClass.STORAGE_ERROR
    assert saved_in(tmp_path / "run") == {"epoch-0"}

    train_here(job("run"))
    train_here(job("undisturbed"))
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


def test_a_half_written_checkpoint_is_ignored(
    model: Path, way: Fields, undisturbed: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    (run / "result.json").unlink()
    optimizer = run / "epoch-2" / "state" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:1000])
    job = job_of(model, run, way)
    assert job.start.resume_from == "epoch-1"
    train_here(job)
    assert_same_run(run, undisturbed)


def test_a_run_that_died_after_its_last_checkpoint_only_finishes(
    model: Path, way: Fields, undisturbed: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    (run / "result.json").unlink()
    train_here(job_of(model, run, way))
    assert_same_run(run, undisturbed)
    result, expected = (RunDirectory.open(str(path)).result() for path in (run, undisturbed))
    assert result is not None
    assert expected is not None
    assert result.evaluation == expected.evaluation
    assert [checkpoint.name for checkpoint in result.checkpoints] == [
        checkpoint.name for checkpoint in expected.checkpoints
    ]


def test_other_training_rows_are_refused_and_nothing_changes(model: Path, tmp_path: Path) -> None:
    train_here(job_of(model, tmp_path, WAYS["lora"]), stop_after=2)
    before = lines_of(tmp_path), files_of(tmp_path / "snapshot-2")
    job = job_of(model, tmp_path, WAYS["lora"], train=some_rows(21, seed=9))
    with pytest.raises(
        FineTuneError, match=r"spec\.train_path: the rows are not those that this run began with"
    ) as raised:
        train_here(job)
    assert raised.value.failure_class is FailureClass.INVALID_DATA
    assert (lines_of(tmp_path), files_of(tmp_path / "snapshot-2")) == before


@pytest.mark.parametrize("way", WAYS)
def test_two_workers_resume_bit_for_bit(model: Path, tmp_path: Path, way: str) -> None:
    fields = WAYS[way] | {
        "num_devices": 2,
        "train_batch_size_per_device": 2,
        "gradient_accumulation_steps": 2,
    }
    train_in_processes(job_of(model, tmp_path / "undisturbed", fields))
    train_in_processes(job_of(model, tmp_path / "run", fields), course=Course(stop_after=4))
    train_in_processes(job_of(model, tmp_path / "run", fields))
    assert_same_run(tmp_path / "run", tmp_path / "undisturbed")


def test_another_number_of_workers_can_resume(tiny_model: Path, tmp_path: Path) -> None:
    train_here(job_of(tiny_model, tmp_path / "one", LORA, train_batch_size_per_device=8))
    train_here(job_of(tiny_model, tmp_path / "both", LORA, train_batch_size_per_device=8), stop_after=4)
    train_in_processes(job_of(tiny_model, tmp_path / "both", LORA, num_devices=2))
    for numbers in ("loss", "evalLoss"):
        assert column(tmp_path / "both", numbers) == pytest.approx(
            column(tmp_path / "one", numbers), abs=1e-5
        )


def test_packed_sequences_resume_with_another_number_of_workers_too(tiny_model: Path, tmp_path: Path) -> None:
    packed = pack(TRAINING_ROWS, 128, RowsInMemory())
    one, both = tmp_path / "one", tmp_path / "both"
    train_here(job_of(tiny_model, one, LORA, train=packed, train_batch_size_per_device=2))
    train_here(job_of(tiny_model, both, LORA, train=packed, train_batch_size_per_device=2), stop_after=4)
    train_in_processes(
        job_of(tiny_model, both, LORA, train=packed, num_devices=2, train_batch_size_per_device=1)
    )

    assert sum(column(one, "tokens")) == 3 * len(packed.input_ids)
    for numbers in ("loss", "evalLoss"):
        assert column(both, numbers) == pytest.approx(column(one, numbers), abs=1e-5)


def test_the_best_checkpoint_of_before_is_still_the_best(tiny_model: Path, tmp_path: Path) -> None:
    # Learning random rows by heart makes other random rows ever less likely: the first checkpoint
    # is the best.
    fields = FULL | {"learning_rate": 1e-2, "num_checkpoints_to_keep": 1}
    train_here(job_of(tiny_model, tmp_path, fields), stop_after=8)
    records = train_here(job_of(tiny_model, tmp_path, fields))
    assert [(checkpoint.name, checkpoint.best) for checkpoint in records[-1].checkpoints] == [
        ("epoch-0", True)
    ]
    assert saved_in(tmp_path) == {"epoch-0"}
