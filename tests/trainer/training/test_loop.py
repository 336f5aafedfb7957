from __future__ import annotations

import shutil
import threading
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import pytest
import torch
from peft import PeftModel
from pydantic import JsonValue
from tests.trainer.training_jobs import (
    FULL,
    LORA,
    TO_THE_END,
    TRAINING_ROWS,
    VALIDATION_ROWS,
    Course,
    Fields,
    column,
    files_of,
    in_processes,
    job_of,
    largest_difference,
    lines_of,
    rows_of,
    saved_in,
    some_rows,
    train_here,
    train_in_processes,
    trained_weights,
    wait_for_saving,
)
from transformers import AutoModelForCausalLM, PreTrainedModel, get_scheduler

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.numbers import ResolvedPrecision
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import ProgressRecord
from finetune_trainer.checkpoint.save import write_checkpoint
from finetune_trainer.checkpoint.state import Position
from finetune_trainer.data.batches import row_order
from finetune_trainer.data.layout import Batch
from finetune_trainer.data.tokens import IGNORED, TokenizedRows
from finetune_trainer.model.load import load_model
from finetune_trainer.parallel.one_device import OneDevice
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.tasks.language import LanguageObjective, LanguageTask
from finetune_trainer.tasks.objective import Loss, Model, Objective
from finetune_trainer.training import loop, setup
from finetune_trainer.training.job import Outcome, TrainingJob, Worker
from finetune_trainer.training.loop import train

WEIGHT_TOLERANCE = {"lora": 1e-5, "full": 5e-4}
"""At first, AdamW divides by the root of a moment that is almost 0. So full training amplifies noise."""

WAYS: dict[str, Fields] = {"lora": LORA, "full": FULL, "full, saved in bf16": {"export_dtype": "bf16"}}

ON_ONE_DEVICE: dict[str, Fields] = {
    "1 row, accumulated 8 times": {"train_batch_size_per_device": 1, "gradient_accumulation_steps": 8},
    "2 rows, accumulated 4 times": {"train_batch_size_per_device": 2, "gradient_accumulation_steps": 4},
    "padded to the context length": {
        "train_batch_size_per_device": 8,
        "padding": "max_length",
        "context_length": 64,
    },
    "activations kept": {"train_batch_size_per_device": 8, "gradient_checkpointing": False},
}
ON_TWO_DEVICES: dict[str, Fields] = {
    "2 devices": {"num_devices": 2, "train_batch_size_per_device": 4},
    "2 devices, 1 row, accumulated 4 times": {
        "num_devices": 2,
        "train_batch_size_per_device": 1,
        "gradient_accumulation_steps": 4,
    },
}
"""Ways to train steps of 8 rows. Of 21 rows, the last step of an epoch has 5: a device gets an empty
micro-batch."""


ONE_DEVICE: Fields = {"train_batch_size_per_device": 8}
TWO_DEVICES = ON_TWO_DEVICES["2 devices"]


class Rows(TypedDict):
    """Arguments of `job_of`."""

    train: TokenizedRows
    validation: TokenizedRows


def with_a_row_in_which_nothing_counts(rows: TokenizedRows) -> TokenizedRows:
    trained = rows.trained.copy()
    trained[rows.offsets[4] : rows.offsets[5]] = False
    return TokenizedRows(rows.input_ids, trained, rows.offsets, rows.lines)


ROWS = with_a_row_in_which_nothing_counts(TRAINING_ROWS)


@pytest.fixture(scope="module", params=["lora", "full"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def same_steps(way: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for each way to train steps of 8 rows, by name. `at once` uses one device and one micro-batch."""
    directory = tmp_path_factory.mktemp(way)
    fields = {"lora": LORA, "full": FULL}[way]

    def job(name: str, shape: Fields) -> TrainingJob:
        return job_of(tiny_model, directory / name, fields | shape, train=ROWS, num_epochs=2)

    train_here(job("at once", {"train_batch_size_per_device": 8}))
    for name, shape in ON_ONE_DEVICE.items():
        train_here(job(name, shape))
    train_in_processes(*(job(name, shape) for name, shape in ON_TWO_DEVICES.items()))
    return directory


@pytest.mark.parametrize("name", [*ON_ONE_DEVICE, *ON_TWO_DEVICES])
def test_how_a_step_is_shared_out_changes_no_loss_and_no_gradient(same_steps: Path, name: str) -> None:
    for numbers in ("loss", "gradNorm", "evalLoss"):
        assert column(same_steps / name, numbers) == pytest.approx(
            column(same_steps / "at once", numbers), abs=1e-5
        )


@pytest.mark.parametrize("name", [*ON_ONE_DEVICE, *ON_TWO_DEVICES])
def test_how_a_step_is_shared_out_does_not_change_what_is_learnt(
    same_steps: Path, way: str, name: str
) -> None:
    learnt, learnt_at_once = (trained_weights(same_steps / run / "epoch-1") for run in (name, "at once"))
    assert largest_difference(learnt, learnt_at_once) < WEIGHT_TOLERANCE[way]


def test_what_is_learnt_is_more_than_the_tolerance(same_steps: Path, way: str) -> None:
    first, last = (
        trained_weights(same_steps / "at once" / checkpoint) for checkpoint in ("epoch-0", "epoch-1")
    )
    assert largest_difference(first, last) > 2 * WEIGHT_TOLERANCE[way]


def test_a_rank_without_rows_trains_validates_and_saves_with_the_others(
    tiny_model: Path, tmp_path: Path
) -> None:
    # Steps of 8 rows: of 9 rows the last step of an epoch has 1, and so has the validation set.
    rows: Rows = {"train": some_rows(9), "validation": some_rows(1, seed=1)}
    one, two = (
        job_of(tiny_model, tmp_path / name, LORA | shape, num_epochs=2, **rows)
        for name, shape in (("one", ONE_DEVICE), ("two", TWO_DEVICES))
    )
    train_here(one)
    train_in_processes(two)
    for numbers in ("loss", "gradNorm", "evalLoss"):
        expected = column(tmp_path / "one", numbers)
        assert len(expected) == (2 if numbers == "evalLoss" else 4)
        assert column(tmp_path / "two", numbers) == pytest.approx(expected, abs=1e-5)
    assert saved_in(tmp_path / "two") == {"epoch-0", "epoch-1"}
    for name in ("epoch-0", "epoch-1"):
        assert (
            largest_difference(*(trained_weights(tmp_path / run / name) for run in ("one", "two")))
            < WEIGHT_TOLERANCE["lora"]
        )


class CountingObjective(LanguageObjective):
    """Language modelling that also counts tokens, and sums up the probability of the right ones."""

    def forward(self, batch: Batch) -> Loss:
        logits = self.model(**batch.inputs, use_cache=False).logits
        counts = batch.labels != IGNORED
        log_probability = logits[counts].log_softmax(dim=-1).gather(1, batch.labels[counts][:, None])
        return Loss(
            total=-log_probability.sum(),
            metrics={"counted": counts.sum(), "probability": log_probability.detach().exp().sum()},
        )


def counting_objective(_task: LanguageTask, model: Model, *_: object) -> Objective:
    return CountingObjective(model)


def train_counting(jobs: Sequence[TrainingJob], rank: int, num_devices: int) -> None:
    """Trains with CountingObjective."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageTask, "objective", counting_objective)
        for job in jobs:
            train(job, TO_THE_END.worker(rank, num_devices, []))


@pytest.fixture(scope="module")
def counted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with CountingObjective: `one` on one device, `two` on two."""
    directory = tmp_path_factory.mktemp("counted")
    one, two = (
        job_of(tiny_model, directory / name, LORA | shape, num_epochs=2, eval_first=True, seed=0)
        for name, shape in (("one", ONE_DEVICE), ("two", TWO_DEVICES))
    )
    train_counting([one], 0, 1)
    assert in_processes(2, partial(train_counting, [two])) == [0, 0]
    return directory


def metrics_of(lines: list[dict[str, JsonValue]], name: str) -> list[float]:
    values = []
    for line in lines:
        metrics = line["metrics"]
        assert isinstance(metrics, dict)
        values.append(float(str(metrics[name])))
    return values


@pytest.mark.parametrize("run", ["one", "two"])
def test_an_objectives_metrics_are_means_over_what_counts_in_a_step_and_in_validation(
    counted: Path, run: str, tiny_model: Path
) -> None:
    lines = lines_of(counted / run)
    assert len(lines) == 6 + 3
    assert metrics_of(lines, "counted") == [pytest.approx(1.0, abs=1e-6)] * len(lines)

    untrained: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_model)
    first_step = row_order(seed=0, epoch=0, rows=len(TRAINING_ROWS))[:8]
    assert metrics_of(lines, "probability")[:2] == pytest.approx(
        [
            mean_probability(untrained, VALIDATION_ROWS, range(len(VALIDATION_ROWS))),
            mean_probability(untrained, TRAINING_ROWS, first_step.tolist()),
        ],
        rel=1e-4,
    )


def mean_probability(model: PreTrainedModel, rows: TokenizedRows, indices: Iterable[int]) -> float:
    """The mean probability of the tokens that count, computed row by row and without padding."""
    probabilities = []
    for index in indices:
        ids, trained = (torch.from_numpy(part) for part in rows.row(index))
        with torch.no_grad():
            predicted = model(input_ids=ids.long()[None]).logits[0, :-1].softmax(dim=-1)
        probabilities.append(predicted.gather(1, ids[1:, None].long())[trained[1:], 0])
    return float(torch.cat(probabilities).mean())


def test_an_objectives_metrics_are_the_same_on_one_device_and_on_two(counted: Path) -> None:
    one, two = (lines_of(counted / run) for run in ("one", "two"))
    assert metrics_of(two, "probability") == pytest.approx(metrics_of(one, "probability"), rel=1e-4)


@pytest.mark.parametrize("run", ["one", "two"])
def test_the_last_validations_metrics_are_in_the_result(counted: Path, run: str) -> None:
    result = RunDirectory.open(str(counted / run)).result()
    assert result is not None
    assert result.evaluation is not None
    last = [line for line in lines_of(counted / run) if "evalLoss" in line][-1]
    assert result.evaluation.metrics == last["metrics"]


@pytest.mark.parametrize(
    ("scheduler", "name_in_transformers"),
    [("cosine", "cosine"), ("linear", "linear"), ("constant", "constant_with_warmup")],
)
def test_learning_rates_are_those_of_transformers(
    tiny_model: Path, tmp_path: Path, scheduler: str, name_in_transformers: str
) -> None:
    train_here(
        job_of(
            tiny_model,
            tmp_path,
            LORA,
            lr_scheduler_type=scheduler,
            num_warmup_steps=3,
            num_epochs=2,
            validation=None,
        )
    )
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-3)
    theirs = get_scheduler(name_in_transformers, optimizer, num_warmup_steps=3, num_training_steps=12)
    expected = []
    for _ in range(12):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert column(tmp_path, "learningRate") == pytest.approx(expected, abs=1e-15)


def test_metrics_have_a_line_for_each_step_and_for_each_validation(tiny_model: Path, tmp_path: Path) -> None:
    rows = some_rows(10)
    train_here(
        job_of(
            tiny_model, tmp_path, LORA, train=rows, eval_first=True, num_epochs=3, checkpoint_every_n_epochs=2
        )
    )
    lines = lines_of(tmp_path)
    # 10 rows in micro-batches of 4 are 3 steps an epoch.
    assert [(line["step"], line["epoch"], line.get("checkpoint", "-")) for line in lines] == [
        (0, 0.0, None),
        (1, 0.3333, "-"),
        (2, 0.6667, "-"),
        (3, 1.0, "-"),
        (4, 1.3333, "-"),
        (5, 1.6667, "-"),
        (6, 2.0, "-"),
        (6, 2.0, "epoch-1"),
        (7, 2.3333, "-"),
        (8, 2.6667, "-"),
        (9, 3.0, "-"),
        (9, 3.0, "epoch-2"),
    ]
    assert sum(column(tmp_path, "tokens")) == 3 * len(rows.input_ids)


def test_records_say_how_far_the_run_is(tiny_model: Path, tmp_path: Path) -> None:
    job = job_of(tiny_model, tmp_path, LORA, eval_first=True, num_epochs=2)
    records = train_here(job)
    progress = [record.progress for record in records if record.progress is not None]
    assert [(each.step, each.percent) for each in progress] == [
        (step, 100 * step // 12) for step in (*range(13), 12)
    ]
    assert progress[0].tokens_trained == 0
    assert progress[0].train_loss is None
    assert progress[6].epochs == "1/2"
    assert progress[6].train_loss == pytest.approx(column(tmp_path, "loss")[5], rel=1e-6)
    assert progress[-1].tokens_trained == 2 * len(TRAINING_ROWS.input_ids)
    assert all(record.evaluation is not None for record in records if record.progress is not None)
    assert records[-1].evaluation is not None
    assert records[-1].evaluation.loss == column(tmp_path, "evalLoss")[-1]


def test_a_finished_run_leaves_its_last_record_as_result(tiny_model: Path, tmp_path: Path) -> None:
    records = train_here(job_of(tiny_model, tmp_path, LORA, num_epochs=1))
    result = RunDirectory.open(str(tmp_path)).result()
    assert result is not None
    assert result.checkpoints == records[-1].checkpoints
    assert result.progress is not None
    assert result.progress.percent == 100


def test_the_same_job_gives_the_same_bytes_again(tiny_model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for run in (first, second):
        train_here(job_of(tiny_model, run, LORA, lora_config={"r": 4, "lora_dropout": 0.1}, num_epochs=1))
    assert lines_of(first) == lines_of(second)
    assert files_of(first / "epoch-0") == files_of(second / "epoch-0")


def test_another_seed_gives_another_order_and_other_adapters(tiny_model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for run, seed in ((first, 1), (second, 2)):
        train_here(job_of(tiny_model, run, LORA, seed=seed, num_epochs=1))
    assert column(first, "tokens") != column(second, "tokens")
    assert largest_difference(trained_weights(first / "epoch-0"), trained_weights(second / "epoch-0")) > 1e-3


def checkpoints_told(job: TrainingJob) -> list[list[str]]:
    """The checkpoints in the records, whenever a record changes them.

    Each that is told is complete when it is, and what goes is there until a record without it was told.
    """
    told: list[list[str]] = [[]]
    run = RunDirectory.open(job.start.run_directory)

    def look(record: ProgressRecord) -> None:
        now = [checkpoint.name for checkpoint in record.checkpoints]
        assert {*told[-1], *now} <= {checkpoint.name for checkpoint in run.checkpoints()}
        if told[-1] != now:
            told.append(now)

    train(job, Worker(0, 1, torch.device("cpu"), look, lambda: False))
    return told


def test_while_a_run_lasts_the_best_and_the_newest_checkpoint_stay_and_then_the_best(
    tiny_model: Path, tmp_path: Path
) -> None:
    # Learning random rows by heart makes other random rows ever less likely: the first checkpoint
    # is the best.
    told = checkpoints_told(
        job_of(tiny_model, tmp_path, FULL, num_epochs=4, learning_rate=1e-2, num_checkpoints_to_keep=1)
    )
    losses = column(tmp_path, "evalLoss")
    assert losses == sorted(losses)
    assert told == [
        [],
        ["epoch-0"],
        ["epoch-0", "epoch-1"],
        ["epoch-0", "epoch-2"],
        ["epoch-0", "epoch-3"],
        ["epoch-0"],
    ]
    assert saved_in(tmp_path) == {"epoch-0"}


def test_a_newest_checkpoint_that_is_the_best_replaces_the_one_before(
    tiny_model: Path, tmp_path: Path
) -> None:
    told = checkpoints_told(
        job_of(tiny_model, tmp_path, FULL, num_epochs=3, validation=TRAINING_ROWS, num_checkpoints_to_keep=1)
    )
    assert told == [[], ["epoch-0"], ["epoch-1"], ["epoch-2"]]
    assert saved_in(tmp_path) == {"epoch-2"}


def test_of_equally_good_checkpoints_the_earlier_stay(tiny_model: Path, tmp_path: Path) -> None:
    # At such a learning rate nothing is learnt.
    train_here(
        job_of(tiny_model, tmp_path, LORA, num_epochs=4, learning_rate=1e-30, num_checkpoints_to_keep=2)
    )
    assert len(set(column(tmp_path, "evalLoss"))) == 1
    assert saved_in(tmp_path) == {"epoch-0", "epoch-1"}


def test_without_validation_the_newest_checkpoints_stay(tiny_model: Path, tmp_path: Path) -> None:
    records = train_here(
        job_of(tiny_model, tmp_path, LORA, num_epochs=4, validation=None, num_checkpoints_to_keep=2)
    )
    assert saved_in(tmp_path) == {"epoch-2", "epoch-3"}
    assert [
        (checkpoint.name, checkpoint.best, checkpoint.eval_loss) for checkpoint in records[-1].checkpoints
    ] == [
        ("epoch-2", False, None),
        ("epoch-3", True, None),
    ]


def test_a_snapshot_is_kept_every_so_often_and_gives_way_to_the_next_and_to_a_checkpoint(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0)
    seen: list[set[str]] = []

    def look(_record: ProgressRecord) -> None:
        wait_for_saving()
        if saved_in(tmp_path) and (not seen or seen[-1] != saved_in(tmp_path)):
            seen.append(saved_in(tmp_path))

    job = job_of(tiny_model, tmp_path, LORA, train=some_rows(10), num_epochs=2)
    train(job, Worker(0, 1, torch.device("cpu"), look, lambda: False))
    assert seen == [
        {"snapshot-1"},
        {"snapshot-2"},
        {"epoch-0"},
        {"epoch-0", "snapshot-4"},
        {"epoch-0", "snapshot-5"},
        {"epoch-0", "epoch-1"},
    ]


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_is_of_its_step_although_training_goes_on_while_it_is_written(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    in_the_background, at_once = (
        job_of(tiny_model, tmp_path / name, WAYS[way], num_epochs=2) for name in ("background", "at once")
    )
    seen: list[tuple[int, list[str]]] = []
    two_steps_later = threading.Event()

    def look(record: ProgressRecord) -> None:
        if record.progress is not None:
            seen.append((record.progress.step, [checkpoint.name for checkpoint in record.checkpoints]))
            if record.progress.step == 8:
                two_steps_later.set()

    def late(directory: Path, *, position: Position, **others: Any) -> None:  # noqa: ANN401
        assert position.step == 12 or two_steps_later.wait(60), "training does not go on"
        write_checkpoint(directory, position=position, **others)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "write_checkpoint", late)
        train(in_the_background, Worker(0, 1, torch.device("cpu"), look, lambda: False))
        assert all(names == [] for step, names in seen if step < 8)

    monkeypatch.setattr(loop, "free_memory", lambda: 0)
    train_here(at_once)

    for name in ("epoch-0", "epoch-1"):
        assert files_of(tmp_path / "background" / name) == files_of(tmp_path / "at once" / name)
    assert lines_of(tmp_path / "background") == lines_of(tmp_path / "at once")


def test_one_worker_that_is_asked_to_stop_stops_all(tiny_model: Path, tmp_path: Path) -> None:
    train_in_processes(
        job_of(tiny_model, tmp_path, LORA, num_devices=2), course=Course(stop_after=2, stopped_rank=1)
    )
    assert saved_in(tmp_path) == {"snapshot-2"}
    assert len(column(tmp_path, "loss")) == 2


def test_a_stop_that_is_asked_for_in_the_last_step_finds_the_run_finished(
    tiny_model: Path, tmp_path: Path
) -> None:
    job = job_of(tiny_model, tmp_path, LORA, num_epochs=1)
    assert (
        train(job, Course(stop_after=job.prepared.numbers.total_steps).worker(0, 1, [])) is Outcome.FINISHED
    )
    assert saved_in(tmp_path) == {"epoch-0"}


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_earlier_checkpoint(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tiny_model, tmp_path / "run", LORA, num_epochs=2)
    models: list[PreTrainedModel | PeftModel] = []

    def remember(
        spec: FineTuneJobSpec, *, dtype: ResolvedPrecision, on_gpu: bool, resumed: Path | None, mesh: None
    ) -> PreTrainedModel | PeftModel:
        models.append(load_model(spec, dtype=dtype, on_gpu=on_gpu, resumed=resumed, mesh=mesh))
        return models[-1]

    def poison(record: ProgressRecord) -> None:
        if record.progress is not None and record.progress.step == 8:
            next(models[0].parameters()).data.fill_(torch.inf)

    monkeypatch.setattr(setup, "load_model", remember)
    with pytest.raises(
        FineTuneError, match=r"the loss of step 9 is nan.*lower spec.learning_rate \(it is 0.001\)"
    ) as raised:
        train(job, Worker(0, 1, torch.device("cpu"), poison, lambda: False))
    assert raised.value.failure_class is FailureClass.DIVERGED
    assert saved_in(job.start.run_directory) == {"epoch-0"}
    assert len(column(job.start.run_directory, "loss")) == 8
    assert RunDirectory.open(job.start.run_directory).result() is None

    monkeypatch.undo()
    train_here(job_of(tiny_model, tmp_path / "run", LORA, num_epochs=2))
    train_here(job_of(tiny_model, tmp_path / "undisturbed", LORA, num_epochs=2))
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "undisturbed")


def test_a_validation_loss_that_is_not_finite_ends_the_run_before_its_checkpoint(
    tiny_model: Path, tmp_path: Path
) -> None:
    only_in_validation = 1
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.get_parameter("model.embed_tokens.weight").data[only_in_validation] = torch.nan
    model.save_pretrained(shutil.copytree(tiny_model, tmp_path / "model"))
    validation = rows_of([6])
    validation.input_ids[2] = only_in_validation

    job = job_of(tmp_path / "model", tmp_path / "run", LORA, validation=validation)
    with pytest.raises(FineTuneError, match="the validation loss after step 6 is nan") as raised:
        train_here(job)
    assert raised.value.failure_class is FailureClass.DIVERGED
    assert saved_in(job.start.run_directory) == set()
    assert column(job.start.run_directory, "evalLoss") == []


def test_each_layer_is_compiled_by_itself(tiny_model: Path, tmp_path: Path) -> None:
    job = job_of(tiny_model, tmp_path, LORA, torch_compile={"enabled": True})
    cpu = torch.device("cpu")
    loaded = setup.load(job.start, cpu)
    setup.set_up(job, loaded, OneDevice(cpu))

    compiled = [
        type(module).__name__ for module in loaded.model.modules() if module._compiled_call_impl is not None
    ]
    assert compiled == ["LlamaDecoderLayer", "LlamaDecoderLayer"]


def test_a_compiled_model_sees_the_same_losses(tiny_model: Path, tmp_path: Path) -> None:
    rows = rows_of([24] * 8)
    eager = job_of(tiny_model, tmp_path / "eager", LORA, train=rows, validation=None)
    compiled = job_of(
        tiny_model, tmp_path / "compiled", LORA, train=rows, validation=None, torch_compile={"enabled": True}
    )
    train_here(eager)
    train_here(compiled)
    assert column(compiled.start.run_directory, "loss") == pytest.approx(
        column(eager.start.run_directory, "loss"), abs=1e-5
    )
    assert saved_in(compiled.start.run_directory) == saved_in(eager.start.run_directory)
