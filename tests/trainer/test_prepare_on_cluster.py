"""Prepare in its pod, and the attempt that trains what it has left: as if there had been no Prepare."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from pydantic import JsonValue
from safetensors.torch import load_file
from tests.cli.command_line import small_job
from tests.trainer.records_server import RecordsServer, records_server
from tests.trainer.writable_hub import hub_of_this_process

from finetune_api.assignment import ASSIGNMENT, Assignment
from finetune_api.failure import FailureClass
from finetune_api.status import ProgressRecord
from finetune_trainer.on_cluster import FAILED, FINISHED, STOPPED, run_attempt
from finetune_trainer.plan import prepare
from finetune_trainer.prepare_on_cluster import main, prepare_job
from finetune_trainer.workers.in_process import InProcess

UID = "7c9e"
MIB, GIB = 2**20, 2**30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RecordsServer]:
    with records_server(tmp_path_factory.mktemp("service-account")) as server:
        yield server


@dataclass
class Job:
    """A small job of which some files, and its runs, are in a directory."""

    directory: Path
    file: Path
    server: RecordsServer
    records: list[ProgressRecord]
    out: str = ""
    device_memory: int | None = None
    """Of a GPU, in bytes; None without one."""

    @property
    def run(self) -> Path:
        return self.directory / "runs" / "somewhere" / f"tiny-{UID}"

    def prepare(self) -> int:
        return self._do(lambda assignment: prepare_job(assignment, self.file, self.server.config_map))

    def train(self) -> int:
        workers = InProcess(torch.device("cpu"), threads=1)
        return self._do(
            lambda assignment: run_attempt(assignment, self.file, self.server.config_map, workers)
        )

    def _do(self, do: object) -> int:
        assert callable(do)
        assignment = Assignment(
            uid=UID,
            attempt=1,
            storage=str(self.directory / "runs"),
            config_map="records",
            on_gpu=self.device_memory is not None,
            worker_resources={"CPU": 1},
            worker_threads=1,
            device_memory=self.device_memory,
        )
        self.server.requests.clear()
        before, out = signal.getsignal(signal.SIGTERM), io.StringIO()
        try:
            with contextlib.redirect_stdout(out):
                code = do(assignment)
        finally:
            signal.signal(signal.SIGTERM, before)
        self.records, self.out = self.server.records, out.getvalue()
        assert isinstance(code, int)
        return code


def job_in(directory: Path, model: Path, server: RecordsServer, **fields: JsonValue) -> Job:
    directory.mkdir(exist_ok=True)
    paths = {"train_path": f"{directory}/train.jsonl", "valid_path": f"{directory}/valid.jsonl"}
    return Job(directory, small_job(directory, model, **{**paths, **fields}), server, [])


@pytest.fixture
def job(tmp_path: Path, tiny_model: Path, server: RecordsServer) -> Job:
    return job_in(tmp_path, tiny_model, server)


@dataclass(frozen=True)
class Both:
    """The same job, prepared before it was trained, and not."""

    prepared: Job
    code: int
    left: list[str]
    """What was in the run directory when it was prepared."""
    records: list[ProgressRecord]
    """Those of Prepare."""
    out: str
    plain: Job


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, server: RecordsServer) -> Both:
    first, other = (job_in(tmp_path_factory.mktemp(name), tiny_model, server) for name in ("first", "other"))
    code = first.prepare()
    left = sorted(file.relative_to(first.run).as_posix() for file in first.run.rglob("*") if file.is_file())
    records, out = first.records, first.out
    assert first.train() == other.train() == FINISHED
    return Both(first, code, left, records, out, other)


def test_it_leaves_the_tokens_in_the_run_directory_and_then_the_plan_in_the_record(both: Both) -> None:
    assert both.code == FINISHED
    assert both.left == [
        "checkpoints.json",
        "job.yaml",
        "prepared/complete.json",
        *(
            f"prepared/{rows}/{file}"
            for rows in ("train", "validation")
            for file in ("input_ids.npy", "lines.npy", "offsets.npy", "tokens.json", "trained.npy")
        ),
    ]
    first, last = both.records
    assert first == ProgressRecord(attempt=1, preparing=True)
    assert last == ProgressRecord(attempt=1, preparing=True, plan=both.prepared.records[-1].plan)
    assert "prepared 12 rows with 1700 tokens: 2 epochs of 3 steps" in both.out


def test_the_attempt_takes_the_tokens_and_the_other_has_none_to_take(both: Both) -> None:
    said = f"the tokens of the rows are those in {both.prepared.run}/prepared"
    assert said in both.prepared.out.splitlines()
    assert "the tokens of the rows" not in both.plain.out


def test_records_of_the_attempt_are_not_prepares(both: Both) -> None:
    assert {record.preparing for record in both.prepared.records} == {False}


def test_what_is_trained_is_the_same_to_the_bit(both: Both) -> None:
    def lines(job: Job) -> list[dict[str, JsonValue]]:
        found = [json.loads(line) for line in (job.run / "metrics.jsonl").read_text().splitlines()]
        of_time = ("time", "tokensPerSecond")
        return [{key: value for key, value in line.items() if key not in of_time} for line in found]

    assert len(lines(both.prepared)) == 8
    assert lines(both.prepared) == lines(both.plain)
    for epoch in ("epoch-0", "epoch-1"):
        one, other = (
            load_file(job.run / epoch / "adapter_model.safetensors") for job in (both.prepared, both.plain)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_when_the_run_has_finished_the_tokens_are_gone(both: Both) -> None:
    assert not (both.prepared.run / "prepared").exists()


WRONG: dict[str, tuple[dict[str, JsonValue], FailureClass, str]] = {
    "a bad row 17": ({}, FailureClass.INVALID_DATA, "train.jsonl:17: messages[0].role: "),
    "an adapter that matches nothing": (
        {"lora_config": {"r": 4, "target_modules": ["no_such_layer"]}},
        FailureClass.INVALID_SPEC,
        "spec.lora_config",
    ),
    "no model": ({"model_id": "/nowhere"}, FailureClass.MODEL_NOT_FOUND, "/nowhere"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_a_failure_of_prepare_and_nothing_is_stored(
    tmp_path: Path, tiny_model: Path, server: RecordsServer, wrong: str
) -> None:
    fields, failure_class, words = WRONG[wrong]
    job = job_in(tmp_path, tiny_model, server, **fields)
    if not fields:
        rows = (tmp_path / "train.jsonl").read_text().splitlines() * 2
        rows[16] = '{"messages": [{"role": "human", "content": "a"}]}'
        (tmp_path / "train.jsonl").write_text("\n".join(rows))

    assert job.prepare() == FAILED

    failure = job.records[-1].failure
    assert failure is not None
    assert (failure.failure_class, job.records[-1].preparing) == (failure_class, True)
    assert words in failure.message
    assert not (tmp_path / "runs").exists()


def test_a_job_for_gpus_has_the_memory_that_it_needs_of_their_hosts_in_its_plan(job: Job) -> None:
    job.device_memory = 2 * GIB
    assert job.prepare() == FINISHED

    plan = job.records[-1].plan
    assert plan is not None
    assert plan.host_memory is not None
    weights = 2 * plan.total_parameters + 2 * plan.trainable_parameters
    assert plan.host_memory == pytest.approx(3 * GIB + weights, abs=1e4), (
        "a frozen base in bf16, and a process"
    )


def test_a_job_that_does_not_fit_its_device_is_a_failure_of_prepare_with_settings_that_do(
    tmp_path: Path, tiny_model: Path, server: RecordsServer
) -> None:
    job = job_in(
        tmp_path,
        tiny_model,
        server,
        worker_resources={"accelerator_type:L4": 1},
        train_batch_size_per_device=64,
        padding="max_length",
    )
    job.device_memory = GIB + 48 * MIB

    assert job.prepare() == FAILED

    failure = job.records[-1].failure
    assert failure is not None
    assert failure.failure_class is FailureClass.INVALID_SPEC
    assert re.fullmatch(
        r"the job needs 1\.\d GiB a device, an L4 has 1\.0: with train_batch_size_per_device \d+ and"
        r" gradient_accumulation_steps \d+ it needs 1\.0 GiB",
        failure.message,
    )
    assert not (tmp_path / "runs").exists()


def test_a_kernel_that_there_is_not_for_the_gpus_is_a_failure_of_prepare(
    tmp_path: Path, tiny_model: Path, server: RecordsServer
) -> None:
    job = job_in(tmp_path, tiny_model, server, liger_kernel={"kwargs": {"geglu": True}})
    job.device_memory = 2 * GIB

    assert job.prepare() == FAILED

    failure = job.records[-1].failure
    assert failure is not None
    assert failure.failure_class is FailureClass.INVALID_SPEC
    assert failure.message.startswith("spec.liger_kernel.kwargs.geglu: Liger has no such switch for llama")
    assert not (tmp_path / "runs").exists()


def test_a_job_that_is_prepared_again_is_prepared_as_well(job: Job) -> None:
    assert job.prepare() == FINISHED
    plan = job.records[-1].plan
    assert job.prepare() == FINISHED
    assert job.records[-1].plan == plan


def test_a_run_directory_of_another_job_is_left_alone(job: Job) -> None:
    job.run.mkdir(parents=True)
    (job.run / "job.yaml").write_text("# somebody-else\n")

    assert job.prepare() == FAILED

    assert job.records[-1].failure is not None
    assert "holds the run of somebody-else" in job.records[-1].failure.message
    assert [file.name for file in job.run.iterdir()] == ["job.yaml"]


def test_sigterm_ends_it_at_once_without_a_word(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "prepare", lambda _spec, _tokens: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        job.prepare()

    assert ended.value.code == STOPPED == 143
    assert job.server.records == [ProgressRecord(attempt=1, preparing=True)]


def test_started_by_hand_it_says_who_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ASSIGNMENT, raising=False)
    with pytest.raises(SystemExit, match="FINETUNE_ASSIGNMENT is not set: the operator starts this program"):
        main()


def test_a_job_that_names_an_earlier_run_is_compared_with_it_before_a_device_is_held(
    both: Both, tmp_path: Path, tiny_model: Path, server: RecordsServer
) -> None:
    earlier = str(both.plain.run)
    longer = job_in(tmp_path / "longer", tiny_model, server, num_epochs=3, resume_from=earlier)
    other = job_in(tmp_path / "other", tiny_model, server, num_epochs=3, resume_from=earlier, seed=7)

    assert other.prepare() == FAILED
    failure = other.records[-1].failure
    assert failure is not None
    assert failure.failure_class is FailureClass.INVALID_SPEC
    assert failure.message.startswith(f"spec.seed: is 7, and 42 in {earlier}; ")
    assert not other.run.exists()

    assert longer.prepare() == longer.train() == FINISHED
    assert f"going on from {earlier}/epoch-1, after step 6: " in longer.out
    steps = [json.loads(line) for line in (longer.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "loss" in line] == list(range(1, 10))
    last = longer.records[-1]
    assert last.finished
    assert {Path(each.path).parent for each in last.checkpoints} == {longer.run}


def test_without_a_token_for_its_output_a_job_is_refused_before_a_cluster_is_asked_for(
    tmp_path: Path, tiny_model: Path, server: RecordsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_of_this_process("http://127.0.0.1:9", monkeypatch, tmp_path)
    monkeypatch.delenv("HF_TOKEN")
    job = job_in(tmp_path / "job", tiny_model, server, output={"push_to_hub": "someone/tuned"})

    assert job.prepare() == FAILED

    failure = job.records[-1].failure
    assert failure is not None
    assert failure.failure_class is FailureClass.ACCESS_DENIED
    assert failure.message.startswith("spec.output.push_to_hub: http://127.0.0.1:9: takes models only with")
    assert not job.run.exists()
