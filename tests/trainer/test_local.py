from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import JsonValue
from tests.cli.command_line import small_job
from tests.trainer.training_jobs import column
from tests.trainer.writable_hub import Hub, Repository, hub_of_this_process, writable_hub

from finetune_api.failure import FineTuneError
from finetune_api.manifest import Manifest, read_manifest
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import Phase, ProgressRecord
from finetune_trainer.local import NOT_PUSHED, OTHER_ROWS, LocalRun, local_run_directory, run_locally, run_uid
from finetune_trainer.storage.lock import locked

if TYPE_CHECKING:
    from finetune_trainer.plan.prepare import Prepared


@dataclass
class Listener:
    """Keeps what it is told."""

    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def prepared(self, prepared: Prepared) -> None:
        raise AssertionError(f"nothing may be prepared: {prepared}")

    def progress(self, record: ProgressRecord) -> None:
        raise AssertionError(f"nothing may be trained: {record}")


@pytest.fixture
def job(tmp_path: Path) -> Manifest:
    """A job with rows for training and for validation."""
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text(f"{name}\n")
    file = tmp_path / "job.yaml"
    file.write_text(
        f"model_id: tiny\ntrain_path: {tmp_path}/train.jsonl\nvalid_path: {tmp_path}/validation.jsonl\n"
    )
    return read_manifest(file)


def finish(job: Manifest, tmp_path: Path, *names: str) -> Path:
    """Makes the job's run one that has finished, on the rows that these files have now."""
    run = local_run_directory(job, str(tmp_path / "runs"), None)
    files = [tmp_path / f"{name}.jsonl" for name in names]
    run.note_inputs({str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files})
    run.finish(ProgressRecord(finished=True))
    return Path(run.path)


def again(job: Manifest, tmp_path: Path) -> tuple[LocalRun, list[str]]:
    listener = Listener()
    ended = run_locally(job, storage=str(tmp_path / "runs"), devices=None, observer=listener)
    return ended, listener.lines


def test_a_finished_run_is_shown_again(job: Manifest, tmp_path: Path) -> None:
    run = finish(job, tmp_path, "train", "validation")

    ended, lines = again(job, tmp_path)

    assert ended.status.phase is Phase.SUCCEEDED
    assert lines == [f"{run}: this run has already finished; --restart deletes it and trains again"]


@pytest.mark.parametrize("name", ["train", "validation"])
def test_a_finished_run_whose_rows_have_changed_says_so_and_how_to_train_anew(
    job: Manifest, tmp_path: Path, name: str
) -> None:
    finish(job, tmp_path, "train", "validation")
    (tmp_path / f"{name}.jsonl").write_text("other rows\n")

    ended, lines = again(job, tmp_path)

    assert ended.status.phase is Phase.SUCCEEDED
    assert lines[1:] == [f"warning: {tmp_path}/{name}.jsonl {OTHER_ROWS}"]
    assert "use --restart" in OTHER_ROWS


def test_rows_that_are_written_anew_without_a_change_are_the_same(job: Manifest, tmp_path: Path) -> None:
    finish(job, tmp_path, "train", "validation")
    (tmp_path / "train.jsonl").write_text("train\n")

    assert len(again(job, tmp_path)[1]) == 1


def test_rows_that_are_gone_are_no_others(job: Manifest, tmp_path: Path) -> None:
    finish(job, tmp_path, "train", "validation")
    (tmp_path / "train.jsonl").unlink()

    assert len(again(job, tmp_path)[1]) == 1


@pytest.mark.parametrize("kept", [None, "{", '["train.jsonl"]', '{"train.jsonl": 5}'])
def test_a_run_that_kept_nothing_of_its_rows_is_shown_without_a_word(
    job: Manifest, tmp_path: Path, kept: str | None
) -> None:
    run = finish(job, tmp_path, "train")
    (run / "inputs.json").unlink()
    if kept is not None:
        (run / "inputs.json").write_text(kept)

    assert len(again(job, tmp_path)[1]) == 1


def test_asking_changes_nothing_of_what_is_trained(job: Manifest) -> None:
    asking = job.spec.model_copy(update={"sample_prompts": ["What?"], "sample_max_tokens": 8})

    assert run_uid(FineTuneJobSpec.model_validate(asking.model_dump(exclude_unset=True))) == run_uid(job.spec)


def test_where_the_model_goes_changes_nothing_of_what_is_trained(job: Manifest) -> None:
    fields = job.spec.model_dump(exclude_unset=True)
    pushing = FineTuneJobSpec.model_validate({**fields, "output": {"push_to_hub": "someone/tuned"}})

    assert run_uid(pushing) == run_uid(job.spec)


# --restart


def test_a_finished_run_is_deleted_and_trained_anew_when_that_is_asked_for(
    tmp_path: Path, tiny_model: Path
) -> None:
    job = read_manifest(small_job(tmp_path, tiny_model, **paths(tmp_path)))
    first = trained(job, tmp_path)
    (first / "epoch-1/left-behind").write_text("of the earlier run")
    (first / "epoch-0/complete.json").unlink()
    weights = (first / "epoch-1/adapter_model.safetensors").read_bytes()

    again = trained(job, tmp_path, restart=True)

    assert again == first
    assert not (again / "epoch-1/left-behind").exists()
    assert (again / "epoch-1/adapter_model.safetensors").read_bytes() == weights
    assert len(column(again, "loss")) == 6


def test_a_run_that_was_interrupted_is_trained_anew_too(tmp_path: Path, tiny_model: Path) -> None:
    job = read_manifest(small_job(tmp_path, tiny_model, **paths(tmp_path)))
    first = trained(job, tmp_path)
    (first / "result.json").unlink()
    listener = Steps()

    run_locally(job, storage=str(tmp_path / "runs"), devices=None, observer=listener, restart=True)

    assert listener.steps[:2] == [0, 1]
    assert not any("resuming" in line for line in listener.lines)


def test_what_is_wrong_does_not_cost_the_run_that_is_there(tmp_path: Path, tiny_model: Path) -> None:
    job = read_manifest(small_job(tmp_path, tiny_model, **paths(tmp_path)))
    run = trained(job, tmp_path)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    (tmp_path / "train.jsonl").write_text("no row\n")

    with pytest.raises(FineTuneError, match=r"train\.jsonl:1"):
        trained(job, tmp_path, restart=True)

    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_a_run_that_another_process_trains_is_not_deleted(tmp_path: Path, tiny_model: Path) -> None:
    job = read_manifest(small_job(tmp_path, tiny_model, **paths(tmp_path)))
    run = trained(job, tmp_path)

    with (
        locked(local_run_directory(job, str(tmp_path / "runs"), None)),
        pytest.raises(FineTuneError, match="another process is training there"),
    ):
        trained(job, tmp_path, restart=True)

    assert (run / "epoch-1/adapter_model.safetensors").is_file()


def test_where_no_run_is_there_to_delete_one_is_trained(tmp_path: Path, tiny_model: Path) -> None:
    job = read_manifest(small_job(tmp_path, tiny_model, **paths(tmp_path)))

    assert len(column(trained(job, tmp_path, restart=True), "loss")) == 6


class Steps(Listener):
    """Keeps the steps that it is told of too."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def prepared(self, prepared: Prepared) -> None:
        pass

    def progress(self, record: ProgressRecord) -> None:
        if record.progress is not None:
            self.steps.append(record.progress.step)


def paths(directory: Path) -> dict[str, JsonValue]:
    return {"train_path": f"{directory}/train.jsonl", "valid_path": f"{directory}/valid.jsonl"}


def trained(job: Manifest, directory: Path, *, restart: bool = False) -> Path:
    """The run directory of a job that is trained to its end."""
    storage = str(directory / "runs")
    ended = run_locally(job, storage=storage, devices=None, observer=Steps(), restart=restart)
    assert ended.status.phase is Phase.SUCCEEDED, ended.status.message
    return Path(ended.run_directory)


# output


class Terminated(Steps):
    """Has this process told to stop while the model is pushed."""

    def progress(self, record: ProgressRecord) -> None:
        super().progress(record)
        if record.doing is not None and record.doing.startswith("pushing"):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with writable_hub() as hub:
        hub_of_this_process(hub.address, monkeypatch, tmp_path)
        yield hub


@pytest.fixture
def pushing(tmp_path: Path, tiny_model: Path) -> Manifest:
    """A job whose model goes to a hub."""
    output: JsonValue = {"push_to_hub": "someone/tuned"}
    return read_manifest(small_job(tmp_path, tiny_model, output=output, **paths(tmp_path)))


def ran(job: Manifest, directory: Path, listener: Listener) -> LocalRun:
    return run_locally(job, storage=str(directory / "runs"), devices=None, observer=listener)


def test_a_hub_that_fails_leaves_a_run_that_has_succeeded_and_running_again_only_pushes(
    hub: Hub, pushing: Manifest, tmp_path: Path
) -> None:
    first, second, third = Steps(), Steps(), Steps()
    hub.fails_with = 503
    failed = ran(pushing, tmp_path, first)
    hub.fails_with = None
    pushed = ran(pushing, tmp_path, second)
    asked = len(hub.asked)
    shown = ran(pushing, tmp_path, third)

    assert [each.status.phase for each in (failed, pushed, shown)] == [Phase.SUCCEEDED] * 3
    assert any("warning: spec.output.push_to_hub: the model was not pushed" in line for line in first.lines)
    assert failed.status.pushed is None
    assert set(second.steps) == {6}
    assert pushed.status.pushed is not None
    assert pushed.status.pushed.url == f"{hub.address}/someone/tuned/tree/commit-main-1"
    assert not any("was not pushed" in each for each in pushed.status.warnings)
    assert shown.status.pushed == pushed.status.pushed
    assert len(hub.asked) == asked


def test_who_is_stopped_while_it_is_pushed_pushes_it_when_run_again(
    hub: Hub, pushing: Manifest, tmp_path: Path
) -> None:
    hub.goes_on.clear()
    stopped = ran(pushing, tmp_path, Terminated())
    hub.goes_on.set()
    again = ran(pushing, tmp_path, Steps())

    assert (stopped.status.phase, stopped.status.message) == (Phase.SUSPENDED, NOT_PUSHED)
    assert stopped.status.failure is None
    assert len(column(Path(stopped.run_directory), "loss")) == 6
    assert again.status.phase is Phase.SUCCEEDED
    assert again.status.pushed is not None


def test_without_a_token_nothing_is_trained_and_nothing_is_written(
    hub: Hub, pushing: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")

    with pytest.raises(FineTuneError, match=r"^spec\.output\.push_to_hub: .*set HF_TOKEN"):
        ran(pushing, tmp_path, Steps())

    assert hub.asked == []
    assert list((tmp_path / "runs").rglob("job.yaml")) == []


def test_what_the_hub_will_not_take_is_told_before_training(
    hub: Hub, pushing: Manifest, tmp_path: Path
) -> None:
    hub.repositories["someone/tuned"] = Repository(private=False)
    listener = Steps()

    ended = ran(pushing, tmp_path, listener)

    remarks = [line for line in listener.lines if "is there already, for all to see" in line]
    assert len(remarks) == 2
    assert remarks[0].startswith("warning: spec.output.push_to_hub: someone/tuned: is there already")
    assert "say spec.output.public: true" in remarks[0]
    assert "the model was not pushed" in remarks[1]
    assert ended.status.phase is Phase.SUCCEEDED
