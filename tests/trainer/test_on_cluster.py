"""Attempts at a job in a Ray cluster: stopped, resumed, finished, asked for again, and failed in all ways."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import torch
from pydantic import JsonValue
from tests.cli.command_line import small_job
from tests.trainer.ray_cluster import RayCluster, ray_cluster
from tests.trainer.records_server import RecordsServer, records_server
from tests.trainer.training_jobs import column, saved_in
from tests.trainer.writable_hub import WRITER, hub_of_this_process, writable_hub

from finetune_api.assignment import ASSIGNMENT, Assignment
from finetune_api.failure import FailureClass
from finetune_api.status import Failure, ProgressRecord
from finetune_trainer.model.attention import NO_FLASH_ATTENTION
from finetune_trainer.model.liger import NO_KERNELS
from finetune_trainer.on_cluster import FAILED, FINISHED, STOPPED, main, run_attempt
from finetune_trainer.plan import prepare
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.workers.in_process import InProcess
from finetune_trainer.workers.ray_train import TAKEN_AWAY
from finetune_trainer.workers.workers import Workers

pytestmark = pytest.mark.timeout(1200)
"""Four starts of Ray's processes, on a machine that may be busy."""

STEPS = 60
UID = "7c9e"
RECORDS_UNTIL_TRAINING = 2


@dataclass(frozen=True)
class Attempt:
    """How an attempt ended, and what it told."""

    code: int
    records: list[ProgressRecord]
    out: str
    saved: set[str]
    """What was in the run directory when it ended."""

    @property
    def last(self) -> ProgressRecord:
        return self.records[-1]


class Job:
    """A small job in a directory, and what watches over its attempts."""

    def __init__(
        self,
        directory: Path,
        model: Path,
        server: RecordsServer,
        workers: Workers | None = None,
        **fields: JsonValue,
    ) -> None:
        chosen: dict[str, JsonValue] = {
            "train_path": f"{directory}/train.jsonl",
            "valid_path": f"{directory}/valid.jsonl",
            "num_epochs": STEPS // 3,
            "checkpoint_every_n_epochs": 4,
            "flash_attention_2": True,
            "liger_kernel": {"enabled": True},
        }
        self.file = small_job(directory, model, **{**chosen, **fields})
        self.storage = directory / "runs"
        self.run_directory = self.storage / "somewhere" / f"tiny-{UID}"
        self.too_early: set[str] = set()
        """Checkpoints that a record named before they were complete."""
        self._complete: set[str] = set()
        self._server = server
        self._workers = workers

    def attempt(
        self,
        number: int,
        *,
        when_it_trains: Callable[[], None] | None = None,
        when_it_pushes: Callable[[], None] | None = None,
    ) -> Attempt:
        """Runs one; `when_it_trains` is called once, when a record tells of training, and so on."""
        self._server.requests.clear()
        waiting = [when_it_trains] if when_it_trains else []
        for_a_push = [when_it_pushes] if when_it_pushes else []

        def watch(record: ProgressRecord) -> None:
            self._complete |= {
                checkpoint.name for checkpoint in RunDirectory.open(str(self.run_directory)).checkpoints()
            }
            self.too_early |= {checkpoint.name for checkpoint in record.checkpoints} - self._complete
            if waiting and record.progress:
                waiting.pop()()
            if for_a_push and record.progress and record.doing:
                for_a_push.pop()()

        self._server.on_record = watch
        assignment = Assignment(
            uid=UID,
            attempt=number,
            storage=str(self.storage),
            config_map="records",
            on_gpu=False,
            worker_resources={"CPU": 1},
            worker_threads=1,
        )
        before = signal.getsignal(signal.SIGTERM)
        out = io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                code = run_attempt(assignment, self.file, self._server.config_map, self._workers)
        finally:
            signal.signal(signal.SIGTERM, before)
        return Attempt(
            code,
            self._server.records,
            out.getvalue(),
            saved_in(self.run_directory) if self.run_directory.exists() else set(),
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordsServer]:
    with records_server(tmp_path_factory.mktemp("service-account")) as server:
        yield server


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def kill_worker_of(cluster: RayCluster) -> None:
    (worker,) = [
        process for process in cluster.processes() if "RayTrainWorker" in " ".join(process.cmdline())
    ]
    worker.kill()


# A run from the first attempt to the last


@dataclass(frozen=True)
class Story:
    """Attempts at the same job, one after the other."""

    job: Job
    stopped: Attempt
    killed: Attempt
    """The worker's process was."""
    taken_away: Attempt
    """The worker's node was."""
    finished: Attempt
    again: Attempt


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, server: RecordsServer
) -> Iterator[Story]:
    job = Job(tmp_path_factory.mktemp("story"), tiny_model, server)
    with ray_cluster() as cluster, mock.patch.dict(os.environ, RAY_ADDRESS=cluster.address):
        node = cluster.add_worker()
        stopped = job.attempt(1, when_it_trains=terminate)
        killed = job.attempt(2, when_it_trains=partial(kill_worker_of, cluster))
        taken_away = job.attempt(3, when_it_trains=node.terminate)
        node.wait()
        cluster.add_worker()
        yield Story(job, stopped, killed, taken_away, finished=job.attempt(4), again=job.attempt(5))


def test_sigterm_leaves_a_snapshot_and_no_failure(story: Story) -> None:
    assert story.stopped.code == STOPPED == 143
    assert story.stopped.last.failure is None
    assert story.stopped.last.progress is not None
    step = story.stopped.last.progress.step
    assert f"snapshot-{step}" in story.stopped.saved or step % 12 == 0
    assert story.stopped.out.splitlines()[-1] == f"stopped after step {step}; a snapshot is saved"


def test_records_say_whether_what_an_interrupted_attempt_has_trained_is_saved(story: Story) -> None:
    attempts = [story.stopped, story.killed, story.taken_away, story.finished]
    assert [each.last.interrupted for each in attempts] == [True, False, True, False]


def test_a_worker_that_was_killed_is_a_lost_node(story: Story) -> None:
    assert story.killed.code == FAILED
    assert story.killed.last.failure is not None
    assert story.killed.last.failure.failure_class is FailureClass.NODE_LOST
    assert story.killed.out.splitlines()[-1] == f"failed: NodeLost: {story.killed.last.failure.message}"


def test_when_a_node_is_taken_away_a_snapshot_is_saved_and_that_is_a_lost_node(story: Story) -> None:
    assert story.taken_away.code == STOPPED
    assert story.taken_away.last.failure == Failure(failure_class=FailureClass.NODE_LOST, message=TAKEN_AWAY)
    assert story.taken_away.last.progress is not None
    step = story.taken_away.last.progress.step
    assert f"snapshot-{step}" in story.taken_away.saved or step % 12 == 0


def test_the_next_attempt_goes_on_to_the_end(story: Story) -> None:
    assert story.finished.code == FINISHED == 0
    assert re.search(
        rf"^resuming from {story.job.run_directory}/(snapshot|epoch)-[0-9]+$",
        story.finished.out,
        re.MULTILINE,
    )
    assert len(column(story.job.run_directory, "loss")) == STEPS
    assert story.finished.last.failure is None
    assert [each.last.finished for each in (story.stopped, story.finished, story.again)] == [
        False,
        True,
        True,
    ]
    assert story.finished.last.progress is not None
    assert story.finished.last.progress.epochs == "20/20"


def test_the_first_record_of_an_attempt_knows_the_checkpoints_and_nothing_of_the_attempts_before(
    story: Story,
) -> None:
    before = story.taken_away.last.checkpoints
    first, second = story.finished.records[:RECORDS_UNTIL_TRAINING]

    assert first == ProgressRecord(attempt=4, checkpoints=before)
    assert second == ProgressRecord(attempt=4, checkpoints=before, plan=story.finished.last.plan)


def test_every_record_names_its_attempt(story: Story) -> None:
    attempts = [story.stopped, story.killed, story.taken_away, story.finished, story.again]

    assert [{record.attempt for record in attempt.records} for attempt in attempts] == [
        {1},
        {2},
        {3},
        {4},
        {5},
    ]


def test_records_name_the_checkpoints_that_are_in_storage(story: Story) -> None:
    assert story.job.too_early == set()
    assert {checkpoint.name for checkpoint in story.finished.last.checkpoints} == story.finished.saved
    assert all(Path(checkpoint.path).is_dir() for checkpoint in story.finished.last.checkpoints)


def test_the_log_has_warnings_and_a_line_for_every_epoch_that_was_seen(story: Story) -> None:
    lines = story.finished.out.splitlines()

    assert lines[:2] == [f"warning: {NO_FLASH_ATTENTION}", f"warning: {NO_KERNELS}"]
    assert lines[2] == "prepared 12 rows with 1700 tokens: 20 epochs of 3 steps"
    assert re.fullmatch(
        r"epoch 20/20, step 60/60, loss [0-9.]+, validation loss [0-9.]+, perplexity [0-9.]+", lines[-2]
    )
    assert re.fullmatch(rf"finished; the model is {story.job.run_directory}/epoch-[0-9]+", lines[-1])
    epochs = [line.partition(",")[0] for line in lines if line.startswith("epoch ")]
    assert len(epochs) == len(set(epochs))


def test_a_run_that_has_finished_is_only_reported(story: Story) -> None:
    assert story.again.code == FINISHED
    assert story.again.records == [story.finished.last.model_copy(update={"attempt": 5})]


# Without a cluster: the worker is this process


def in_this_process() -> Workers:
    return InProcess(torch.device("cpu"), threads=1)


@pytest.fixture
def job(tmp_path: Path, tiny_model: Path, server: RecordsServer) -> Job:
    return Job(tmp_path, tiny_model, server, in_this_process())


def test_what_is_wrong_before_training_is_a_failure_and_nothing_is_stored(job: Job) -> None:
    (job.storage.parent / "train.jsonl").write_text("{}\n")
    attempt = job.attempt(1)

    assert attempt.code == FAILED
    assert attempt.last.failure is not None
    assert attempt.last.failure.failure_class is FailureClass.INVALID_DATA
    assert not job.storage.exists()


def test_a_job_that_cannot_be_read_is_a_failure(job: Job) -> None:
    job.file.write_text("kind: FineTuneJob")
    attempt = job.attempt(1)

    assert attempt.code == FAILED
    assert attempt.last.failure is not None
    assert attempt.last.failure.failure_class is FailureClass.INVALID_SPEC


def test_a_mistake_of_our_own_is_a_failure_too_and_its_traceback_is_in_the_log(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prepare, "prepare", lambda spec, _tokens: {}[spec.model_id])
    attempt = job.attempt(1)

    assert attempt.code == FAILED
    assert attempt.last.failure is not None
    assert attempt.last.failure.failure_class is FailureClass.UNKNOWN
    assert attempt.last.failure.message.startswith("KeyError: ")
    assert "Traceback" in capsys.readouterr().err


def test_sigterm_before_training_ends_it_at_once(
    job: Job, server: RecordsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "prepare", lambda _spec, _tokens: terminate())
    attempt = job.attempt(3)

    assert attempt.code == STOPPED
    assert attempt.out.splitlines()[-1] == "stopped before a step was trained"
    assert server.records == [ProgressRecord(attempt=3)]


def test_sigterm_while_it_trains_leaves_word_that_the_work_is_saved(job: Job) -> None:
    attempt = job.attempt(1, when_it_trains=terminate)

    assert attempt.code == STOPPED
    assert attempt.last.interrupted
    assert attempt.last.progress is not None
    assert f"snapshot-{attempt.last.progress.step}" in attempt.saved or attempt.last.progress.step % 12 == 0


def test_the_model_is_pushed_before_the_run_says_that_it_has_finished(
    tmp_path: Path, tiny_model: Path, server: RecordsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writable_hub() as hub:
        hub_of_this_process(hub.address, monkeypatch, tmp_path)
        fields: dict[str, JsonValue] = {"num_epochs": 4, "output": {"push_to_hub": "someone/tuned"}}
        job = Job(tmp_path, tiny_model, server, in_this_process(), **fields)
        hub.goes_on.clear()
        stopped = job.attempt(1, when_it_pushes=terminate)
        hub.goes_on.set()
        finished = job.attempt(2)
        asked = len(hub.asked)
        again = job.attempt(3)

    assert stopped.code == STOPPED
    assert (stopped.last.finished, stopped.last.interrupted, stopped.last.failure) == (False, True, None)
    assert stopped.out.splitlines()[-2:] == [
        "pushing epoch-3 to someone/tuned",
        "training has finished; stopped before the model was pushed",
    ]
    assert finished.code == FINISHED
    url = f"{hub.address}/someone/tuned/tree/commit-main-1"
    assert finished.out.splitlines()[-2:] == [
        f"pushed to {url}",
        f"finished; the model is {job.run_directory}/epoch-3",
    ]
    assert "resuming" not in finished.out
    assert [each.finished for each in finished.records if each.doing is not None] == [False]
    assert finished.last.finished
    assert finished.last.doing is None
    assert finished.last.pushed is not None
    assert finished.last.pushed.url == url
    assert again.last.pushed == finished.last.pushed
    assert len(hub.asked) == asked
    assert not any(WRITER in each.model_dump_json() for each in (stopped.last, finished.last))
    assert WRITER not in stopped.out + finished.out


def test_a_run_in_which_another_process_has_trained_meanwhile_is_left_to_it(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter([None, "epoch-0"])
    monkeypatch.setattr(RunDirectory, "newest", lambda _run: next(names))
    attempt = job.attempt(1)

    assert attempt.code == FAILED
    assert not attempt.last.interrupted
    assert attempt.last.failure is not None
    assert attempt.last.failure.failure_class is FailureClass.STORAGE_ERROR
    assert "another process has trained there meanwhile" in attempt.last.failure.message


def test_started_by_hand_it_says_who_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ASSIGNMENT, raising=False)
    with pytest.raises(SystemExit, match="FINETUNE_ASSIGNMENT is not set: the operator starts this program"):
        main()
