from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import pytest

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.paths import run_directory_name
from finetune_api.status import Checkpoint, ProgressRecord
from finetune_trainer.report.metrics import EvaluationLine, StepLine
from finetune_trainer.storage.open import Storage, open_storage
from finetune_trainer.storage.run_directory import RunDirectory

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def record(run: RunDirectory, index: int, eval_loss: float | None = None) -> Checkpoint:
    name = f"epoch-{index}"
    return Checkpoint(
        name=name,
        path=run.checkpoint_path(name),
        epoch=index + 1,
        step=10 * (index + 1),
        eval_loss=eval_loss,
        time=NOW,
    )


def save(run: RunDirectory, index: int, eval_loss: float | None = None) -> None:
    """Saves the checkpoint epoch-`index`; an epoch has ten steps."""
    with run.staging(f"epoch-{index}") as staging:
        fill(staging)
        run.commit(f"epoch-{index}", staging, record(run, index, eval_loss))


def save_snapshot(run: RunDirectory, step: int) -> None:
    with run.staging(run.snapshot_name(step)) as staging:
        fill(staging)
        run.commit_snapshot(step, staging)


def fill(staging: Path) -> None:
    (staging / "model.safetensors").write_bytes(b"weights")
    (staging / "state").mkdir()
    (staging / "state" / "optimizer.pt").write_bytes(b"moments")


def names(run: RunDirectory) -> list[str]:
    return [checkpoint.name for checkpoint in run.checkpoints()]


def index(storage: Storage) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = json.loads(storage.read_text("checkpoints.json") or "")
    return entries


@pytest.fixture
def storage(storage_path: str) -> Storage:
    return open_storage(storage_path)


@pytest.fixture
def run(storage: Storage) -> RunDirectory:
    return RunDirectory(storage)


def prepare(run: RunDirectory, content: bytes = b"tokens") -> None:
    with run.staging_prepared() as staging:
        (staging / "train.npz").write_bytes(content)
        run.commit_prepared(staging)


def test_what_was_prepared_is_there_whole_until_the_run_has_finished(
    run: RunDirectory, storage: Storage
) -> None:
    assert run.prepared() is None
    prepare(run)
    prepare(run, b"other tokens")
    found = run.prepared()
    assert found is not None
    assert found.read_text("train.npz") == "other tokens"
    assert (run.checkpoints(), run.newest()) == ([], None), "it is no checkpoint"

    storage.write_text("prepared/train.npz", "half")
    assert run.prepared() is None
    prepare(run)
    run.claim("kind: FineTuneJob", "ours")
    assert run.prepared() is not None, "another attempt begins"

    run.finish(ProgressRecord())
    assert run.prepared() is None
    assert not [name for name in storage.files() if name.startswith("prepared/")]
    run.finish(ProgressRecord())


def test_a_run_is_named_after_its_job() -> None:
    assert run_directory_name("default", "qwen", "3f2a") == "default/qwen-3f2a"


# Checkpoints


def test_a_committed_checkpoint_is_listed_with_its_path(run: RunDirectory, storage_path: str) -> None:
    save(run, 0, eval_loss=2.0)

    [checkpoint] = RunDirectory.open(storage_path).checkpoints()

    assert checkpoint == record(run, 0, eval_loss=2.0).model_copy(update={"best": True, "latest": True})
    assert open_storage(checkpoint.path).files().keys() == {
        "model.safetensors",
        "state/optimizer.pt",
        "complete.json",
    }


def test_a_local_copy_holds_what_was_staged(run: RunDirectory) -> None:
    save(run, 0)

    with run.local_copy("epoch-0") as directory:
        assert (directory / "model.safetensors").read_bytes() == b"weights"
        assert (directory / "state" / "optimizer.pt").read_bytes() == b"moments"


def test_the_index_marks_the_best_and_the_latest(run: RunDirectory, storage: Storage) -> None:
    for position, eval_loss in enumerate([2.0, 1.0, 1.5]):
        save(run, position, eval_loss)

    assert [(entry["name"], entry["best"], entry["latest"]) for entry in index(storage)] == [
        ("epoch-0", False, False),
        ("epoch-1", True, False),
        ("epoch-2", False, True),
    ]
    assert [entry["path"] for entry in index(storage)] == [
        run.checkpoint_path(f"epoch-{position}") for position in range(3)
    ]


def test_a_run_directory_that_was_moved_knows_where_it_is(tmp_path: Path) -> None:
    save(RunDirectory.open(f"{tmp_path}/here"), 0)
    (tmp_path / "here").rename(tmp_path / "there")

    [checkpoint] = RunDirectory.open(f"{tmp_path}/there").checkpoints()

    assert checkpoint.path == f"{tmp_path}/there/epoch-0"


def without_marker(storage: Storage) -> None:
    storage.delete("epoch-1/complete.json")


def with_half_a_marker(storage: Storage) -> None:
    text = storage.read_text("epoch-1/complete.json") or ""
    storage.write_text("epoch-1/complete.json", text[: len(text) // 2])


def without_a_file(storage: Storage) -> None:
    storage.delete("epoch-1/state/optimizer.pt")


def with_half_a_file(storage: Storage) -> None:
    storage.write_text("epoch-1/model.safetensors", "wei")


@pytest.mark.parametrize("damage", [without_marker, with_half_a_marker, without_a_file, with_half_a_file])
def test_an_incomplete_checkpoint_does_not_exist(
    run: RunDirectory, storage: Storage, damage: Callable[[Storage], None]
) -> None:
    save(run, 0)
    save(run, 1)

    damage(storage)

    assert names(run) == ["epoch-0"]
    assert run.newest() == "epoch-0"


def test_a_checkpoint_whose_card_people_fill_in_stays_complete(run: RunDirectory, storage: Storage) -> None:
    with run.staging("epoch-0") as staging:
        fill(staging)
        (staging / "README.md").write_text("# My model\n")
        run.commit("epoch-0", staging, record(run, 0))

    storage.write_text("epoch-0/README.md", "---\nlicense: mit\n---\n# My model\n")

    assert names(run) == ["epoch-0"]
    assert storage.read_text("epoch-0/README.md") == "---\nlicense: mit\n---\n# My model\n"


def test_a_complete_checkpoint_is_never_written_to(run: RunDirectory, storage: Storage) -> None:
    save(run, 0, eval_loss=2.0)
    before = storage.read_text("epoch-0/complete.json")

    with (
        run.staging("epoch-0") as staging,
        pytest.raises(ValueError, match=r"epoch-0.* is complete and must not change"),
    ):
        run.commit("epoch-0", staging, record(run, 0, eval_loss=1.0))

    assert storage.read_text("epoch-0/complete.json") == before
    assert storage.read_text("epoch-0/model.safetensors") == "weights"


def test_a_checkpoint_replaces_an_incomplete_one_of_its_name(run: RunDirectory, storage: Storage) -> None:
    storage.write_text("epoch-0/left-over.bin", "x")

    save(run, 0)

    assert names(run) == ["epoch-0"]
    assert "epoch-0/left-over.bin" not in storage.files()


def test_pruning_deletes_all_but_the_named_checkpoints(run: RunDirectory, storage: Storage) -> None:
    for position, eval_loss in enumerate([1.0, 3.0, 2.0]):
        save(run, position, eval_loss)

    run.prune({"epoch-0", "epoch-2"})

    assert names(run) == ["epoch-0", "epoch-2"]
    assert [entry["name"] for entry in index(storage)] == ["epoch-0", "epoch-2"]
    assert {name.partition("/")[0] for name in storage.files()} == {"epoch-0", "epoch-2", "checkpoints.json"}


# What to resume from


def test_a_new_run_has_nothing_to_resume_from(run: RunDirectory) -> None:
    assert run.newest() is None


def test_the_newest_is_the_one_with_the_most_steps(run: RunDirectory) -> None:
    for position in (8, 9, 10):
        save(run, position)

    assert run.newest() == "epoch-10"


def test_a_snapshot_is_newer_than_the_checkpoint_before_it(run: RunDirectory) -> None:
    save(run, 0)
    save_snapshot(run, 15)

    assert run.newest() == "snapshot-15"
    assert names(run) == ["epoch-0"]


def test_at_the_same_step_a_checkpoint_is_resumed_from_because_it_was_validated(run: RunDirectory) -> None:
    save(run, 0)
    save_snapshot(run, 10)

    assert run.newest() == "epoch-0"


def test_one_snapshot_is_kept(run: RunDirectory, storage: Storage) -> None:
    save_snapshot(run, 5)
    save_snapshot(run, 15)

    assert {name.partition("/")[0] for name in storage.files()} == {"snapshot-15"}


def test_a_checkpoint_takes_the_place_of_the_snapshot(run: RunDirectory, storage: Storage) -> None:
    save_snapshot(run, 5)
    save(run, 0)

    assert {name.partition("/")[0] for name in storage.files()} == {"epoch-0", "checkpoints.json"}


# Whose run it is


def test_a_claimed_directory_holds_the_manifest_and_an_empty_index(
    run: RunDirectory, storage: Storage
) -> None:
    run.claim("spec: {}\n", "default/qwen (3f2a)")

    assert storage.read_text("job.yaml") == "# default/qwen (3f2a)\nspec: {}\n"
    assert index(storage) == []


def test_claiming_again_leaves_the_manifest_and_the_checkpoints(run: RunDirectory, storage: Storage) -> None:
    run.claim("spec: {}\n", "default/qwen (3f2a)")
    save(run, 0)
    save_snapshot(run, 15)

    run.claim("spec: {suspend: false}\n", "default/qwen (3f2a)")

    assert storage.read_text("job.yaml") == "# default/qwen (3f2a)\nspec: {}\n"
    assert names(run) == ["epoch-0"]
    assert run.newest() == "snapshot-15"


def test_the_directory_of_another_job_is_refused_and_left_as_it_is(
    run: RunDirectory, storage: Storage
) -> None:
    run.claim("spec: {}\n", "default/llama (aaaa)")
    storage.write_text("epoch-0/left-over.bin", "x")
    before = storage.files()

    with pytest.raises(FineTuneError, match=r"default/llama \(aaaa\).*default/qwen \(bbbb\)") as raised:
        run.claim("other: {}\n", "default/qwen (bbbb)")

    assert raised.value.failure_class == FailureClass.INVALID_SPEC
    assert str(raised.value).startswith(run.path)
    assert storage.files() == before


def test_claiming_removes_what_a_dead_run_left_half_written(run: RunDirectory, storage: Storage) -> None:
    save(run, 0)
    storage.write_text("epoch-1/model.safetensors", "x")
    storage.write_text("snapshot-15/model.safetensors", "x")

    run.claim("spec: {}\n", "default/qwen (3f2a)")

    assert {name.partition("/")[0] for name in storage.files()} == {"job.yaml", "checkpoints.json", "epoch-0"}


def test_claiming_repairs_the_index(run: RunDirectory, storage: Storage) -> None:
    save(run, 0)
    storage.delete("checkpoints.json")

    run.claim("spec: {}\n", "default/qwen (3f2a)")

    assert [entry["name"] for entry in index(storage)] == ["epoch-0"]


def test_a_damaged_checkpoint_is_named_and_left_for_a_person_to_look_at(
    run: RunDirectory, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    save(run, 0)
    storage.write_text("epoch-0/model.safetensors", "wei")

    with caplog.at_level(logging.WARNING):
        run.claim("spec: {}\n", "default/qwen (3f2a)")

    assert f"{run.checkpoint_path('epoch-0')} is ignored" in caplog.text
    assert storage.read_text("epoch-0/model.safetensors") == "wei"


def test_a_run_that_has_not_finished_has_no_result(run: RunDirectory) -> None:
    run.claim("spec: {}\n", "default/qwen (3f2a)")

    assert run.result() is None


def test_the_result_is_the_record_that_the_run_finished_with(run: RunDirectory, storage_path: str) -> None:
    save(run, 0, eval_loss=2.0)
    run.append_metrics(step_line(1))
    finished = ProgressRecord(checkpoints=run.checkpoints())

    run.finish(finished)

    assert RunDirectory.open(storage_path).result() == finished
    assert len(lines(open_storage(storage_path))) == 1


def test_a_deleted_run_leaves_nothing(run: RunDirectory, storage: Storage) -> None:
    run.claim("spec: {}\n", "default/qwen (3f2a)")
    save(run, 0)

    run.delete()

    assert storage.files() == {}


# Metrics


def step_line(step: int, loss: float = 2.0) -> StepLine:
    return StepLine(
        step=step,
        epoch=step / 10,
        loss=loss,
        learning_rate=1e-4,
        grad_norm=1.0,
        tokens=100,
        tokens_per_second=None,
        time=NOW,
    )


def evaluation_line(step: int, checkpoint: str | None) -> EvaluationLine:
    return EvaluationLine(
        step=step, epoch=step / 10, eval_loss=2.0, perplexity=7.4, checkpoint=checkpoint, time=NOW
    )


def lines(storage: Storage) -> list[dict[str, object]]:
    return [
        json.loads(line, parse_constant=refuse)
        for line in (storage.read_text("metrics.jsonl") or "").splitlines()
    ]


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is not JSON")


def test_metrics_are_lines_of_json_in_the_spelling_of_the_status(run: RunDirectory, storage: Storage) -> None:
    run.append_metrics(step_line(1))
    run.append_metrics(evaluation_line(10, "epoch-0"))
    run.flush_metrics()

    assert [line.keys() for line in lines(storage)] == [
        {"step", "epoch", "loss", "learningRate", "gradNorm", "tokens", "tokensPerSecond", "time"},
        {"step", "epoch", "evalLoss", "perplexity", "checkpoint", "time"},
    ]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_json_all_the_same(
    run: RunDirectory, storage: Storage, loss: float
) -> None:
    run.append_metrics(step_line(1, loss=loss))

    [line] = lines(storage)

    assert str(float(str(line["loss"]))) == str(loss)


@pytest.mark.parametrize("how", ["checkpoint", "snapshot"])
def test_metrics_are_stored_with_every_checkpoint_and_snapshot(
    run: RunDirectory, storage_path: str, how: str
) -> None:
    run.append_metrics(step_line(1))

    save(run, 0) if how == "checkpoint" else save_snapshot(run, 1)

    assert [line["step"] for line in lines(open_storage(storage_path))] == [1]


def test_resuming_drops_the_lines_of_steps_that_are_done_again(run: RunDirectory, storage: Storage) -> None:
    save(run, 0)
    run.append_metrics(evaluation_line(0, None))
    for step in (9, 10, 11, 12):
        run.append_metrics(step_line(step))
    run.append_metrics(evaluation_line(10, "epoch-0"))

    run.truncate_metrics(10)
    run.append_metrics(step_line(11))

    assert [(line["step"], "evalLoss" in line) for line in lines(storage)] == [
        (0, True),
        (9, False),
        (10, False),
        (10, True),
        (11, False),
    ]


def test_resuming_keeps_the_validations_of_checkpoints_that_were_deleted(
    run: RunDirectory, storage: Storage
) -> None:
    for position in (0, 1):
        save(run, position)
        run.append_metrics(evaluation_line(10 * (position + 1), f"epoch-{position}"))
    run.prune({"epoch-1"})

    run.truncate_metrics(20)

    assert [line["checkpoint"] for line in lines(storage)] == ["epoch-0", "epoch-1"]


def test_resuming_drops_a_validation_whose_checkpoint_did_not_come_to_be(
    run: RunDirectory, storage: Storage
) -> None:
    save_snapshot(run, 10)
    run.append_metrics(step_line(10))
    run.append_metrics(evaluation_line(10, "epoch-0"))

    run.truncate_metrics(10)

    assert [line.get("checkpoint", "a step") for line in lines(storage)] == ["a step"]


@pytest.mark.parametrize(
    "rest",
    ['{"step":2,"epo', '{"step":2}', '\0\0\0"}\n'],
    ids=["half a line", "a line without its end", "a block that the machine lost"],
)
def test_resuming_drops_a_line_that_a_crash_cut_off(run: RunDirectory, storage: Storage, rest: str) -> None:
    run.append_metrics(step_line(1))
    storage.append_text("metrics.jsonl", rest)

    run.truncate_metrics(5)
    run.append_metrics(step_line(2))

    assert [line["step"] for line in lines(storage)] == [1, 2]


def test_starting_anew_drops_all_lines(run: RunDirectory, storage: Storage) -> None:
    run.append_metrics(evaluation_line(0, None))

    run.truncate_metrics(-1)

    assert lines(storage) == []


# Storage that fails, runs that die


def test_a_full_disk_leaves_the_earlier_checkpoint_whole(
    tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    run = RunDirectory.open(f"{tmp_path}/run")
    save(run, 0)
    before = open_storage(run.path).files()

    with (
        full_disk(),
        pytest.raises(FineTuneError, match=rf"^{tmp_path}/run/\.epoch-1\.partial: File too large$") as raised,
    ):
        save_much(run)

    assert raised.value.failure_class == FailureClass.STORAGE_ERROR
    assert names(run) == ["epoch-0"]
    assert open_storage(run.path).files() == before


def save_much(run: RunDirectory) -> None:
    with run.staging("epoch-1") as staging:
        fill(staging)
        (staging / "large.bin").write_bytes(bytes(100_000))
        run.commit("epoch-1", staging, record(run, 1))


def test_a_disk_that_is_full_for_a_snapshot_leaves_the_earlier_one(
    tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    run = RunDirectory.open(f"{tmp_path}/run")
    save_snapshot(run, 5)

    with (
        full_disk(),
        pytest.raises(FineTuneError, match="File too large"),
        run.staging("snapshot-6") as staging,
    ):
        (staging / "large.bin").write_bytes(bytes(100_000))

    assert run.newest() == "snapshot-5"


def test_a_place_that_cannot_be_written_to_is_found_out_when_it_is_claimed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file is no directory")

    with pytest.raises(FineTuneError, match=rf"^{tmp_path}/file/run.*: Not a directory$") as raised:
        RunDirectory.open(f"{tmp_path}/file/run").claim("spec: {}\n", "default/qwen (3f2a)")

    assert raised.value.failure_class == FailureClass.STORAGE_ERROR


def test_a_bucket_that_vanishes_is_a_storage_error(s3_bucket: str) -> None:
    run = RunDirectory.open(f"s3://not-{s3_bucket}/run")

    with pytest.raises(FineTuneError, match=rf"^s3://not-{s3_bucket}/run") as raised:
        run.claim("spec: {}\n", "default/qwen (3f2a)")

    assert raised.value.failure_class == FailureClass.STORAGE_ERROR


SAVE = """
import os, signal, sys
from datetime import UTC, datetime
from finetune_api.status import Checkpoint, ProgressRecord
from finetune_trainer.storage.run_directory import RunDirectory

run = RunDirectory.open(sys.argv[1])
with run.staging("epoch-1") as staging:
    for number in range(500):
        (staging / f"part-{number:03}").write_bytes(bytes(1000))
    if sys.argv[2:] == ["--die-at-rename"]:
        sys.addaudithook(lambda event, _: event == "os.rename" and os.kill(os.getpid(), signal.SIGKILL))
    record = Checkpoint(name="epoch-1", path=run.path, epoch=2, step=20, time=datetime.now(UTC))
    run.commit("epoch-1", staging, record)
"""


def assert_that_it_resumes(run: RunDirectory, before: dict[str, int]) -> None:
    """Checks that a new process finds only epoch-0, and can save epoch-1."""
    storage = open_storage(run.path)
    assert names(run) == ["epoch-0"]
    assert run.newest() == "epoch-0"
    run.claim("spec: {}\n", "default/qwen (3f2a)")
    assert storage.files() == before
    save(run, 1)
    assert names(run) == ["epoch-0", "epoch-1"]


def test_a_run_killed_before_the_rename_has_no_such_checkpoint(tmp_path: Path) -> None:
    run = RunDirectory.open(f"{tmp_path}/run")
    run.claim("spec: {}\n", "default/qwen (3f2a)")
    save(run, 0)
    before = open_storage(run.path).files()

    process = subprocess.Popen([sys.executable, "-c", SAVE, run.path, "--die-at-rename"])

    assert process.wait(timeout=60) == -signal.SIGKILL
    assert ".epoch-1.partial/complete.json" in open_storage(run.path).files()
    assert_that_it_resumes(run, before)


def test_a_run_killed_while_it_uploads_has_no_such_checkpoint(object_path: str, tmp_path: Path) -> None:
    run = RunDirectory.open(object_path)
    run.claim("spec: {}\n", "default/qwen (3f2a)")
    save(run, 0)
    storage = open_storage(object_path)
    before = storage.files()

    # A process that is killed leaves what it staged.
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE, run.path], env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    deadline = time.monotonic() + 60
    while storage.files().keys() <= before.keys():
        assert time.monotonic() < deadline
    process.kill()

    assert process.wait(timeout=60) == -signal.SIGKILL
    assert not storage.files().keys() <= before.keys()
    assert_that_it_resumes(run, before)
