"""Runs that share one model between two ranks: what they save, and that they go on from it as if undisturbed.

Also with another number of devices. One spawn of two processes trains all that needs no accident.
"""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import signal
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import cast
from uuid import uuid4

import boto3
import pytest
import torch
import torch.distributed as dist
from tests.trainer.training_jobs import (
    FULL,
    LORA,
    VALIDATION_ROWS,
    Course,
    Fields,
    column,
    eight_rows_a_step,
    files_of,
    forward_of,
    in_processes,
    job_of,
    largest_difference,
    lines_of,
    saved_in,
    train_here,
    trained_weights,
)
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune_api.sharding import COPIES, Sharding
from finetune_trainer.checkpoint import streamed
from finetune_trainer.checkpoint.parts import read_parts
from finetune_trainer.model.load import LoadingInfo
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.training.evaluate import evaluate
from finetune_trainer.training.job import TrainingJob, Worker
from finetune_trainer.training.loop import train
from finetune_trainer.training.setup import load

FSDP = Sharding(kind="fsdp")
WAYS: dict[str, Fields] = {
    "lora": LORA | {"lora_config": {"r": 8, "lora_dropout": 0.1}},
    "full": FULL,
    "full, saved in bf16": {"export_dtype": "bf16"},
}
PLAIN: dict[str, Fields] = {"lora": LORA, "full, saved in bf16": {"export_dtype": "bf16"}}
"""Without dropout, which draws from each rank's own random numbers."""
STOP = 4
"""In the middle of the second of three epochs, each of three steps."""
SMALL_FILE = 100_000


def job(model: Path, run: str | Path, way: Fields, devices: int, sharding: Sharding) -> TrainingJob:
    return job_of(model, run, way | eight_rows_a_step(devices), sharding=sharding)


def job_of_two(model: Path, run: str | Path, way: Fields, rank: int) -> TrainingJob:
    """From where the run stands; one rank after the other, since only one may claim a run."""
    if rank == 1:
        dist.barrier()
    mine = job(model, run, way, 2, FSDP)
    if rank == 0:
        dist.barrier()
    dist.barrier()
    return mine


def on_two(model: Path, run: str | Path, way: Fields, rank: int, stop: int | None = None) -> None:
    """Trains on this rank of two, from where the run stands."""
    train(job_of_two(model, run, way, rank), Course(stop).worker(rank, 2, []))
    dist.barrier()


def train_all(
    model: Path, directory: Path, bucket: str, environment: Mapping[str, str], rank: int, num_devices: int
) -> None:
    assert num_devices == 2
    os.environ.update(environment)
    for name, way in WAYS.items():
        on_two(model, directory / f"{name}: undisturbed", way, rank)
        on_two(model, directory / f"{name}: stopped", way, rank, STOP)
        on_two(model, directory / f"{name}: stopped", way, rank)
    for name, way in PLAIN.items():
        on_two(model, directory / f"{name}: two, then one", way, rank, STOP)
        on_two(model, directory / f"{name}: one, then two", way, rank)
    on_two(model, bucket, WAYS["lora"], rank, STOP)
    on_two(model, bucket, WAYS["lora"], rank)
    streamed.FILE_BYTES = SMALL_FILE
    on_two(model, directory / "several files", FULL, rank, STOP)
    on_two(model, directory / "several files", FULL, rank)


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(tiny_model, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def s3(s3_endpoint: str) -> tuple[str, dict[str, str]]:
    """A directory in a new bucket, and the environment in which it is found."""
    environment = {
        "AWS_ENDPOINT_URL_S3": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    bucket = f"bucket-{uuid4().hex}"
    client = boto3.client(
        "s3",
        endpoint_url=s3_endpoint,
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=bucket)
    return f"s3://{bucket}/runs", environment


@pytest.fixture(scope="module")
def runs(model: Path, s3: tuple[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs")
    for name, way in PLAIN.items():
        train_here(job(model, directory / f"{name}: one device", way, 1, COPIES))
        train_here(job(model, directory / f"{name}: one, then two", way, 1, COPIES), stop_after=STOP)
    bucket, environment = s3
    assert in_processes(2, partial(train_all, model, directory, bucket, environment)) == [0, 0]
    for name, way in PLAIN.items():
        train_here(job(model, directory / f"{name}: two, then one", way, 1, COPIES))
    return directory


def assert_same_run(run: Path, undisturbed: Path) -> None:
    assert lines_of(run) == lines_of(undisturbed)
    assert saved_in(run) == saved_in(undisturbed)
    for checkpoint in saved_in(undisturbed):
        assert_same_checkpoint(run / checkpoint, undisturbed / checkpoint)


def assert_same_checkpoint(one: Path, other: Path) -> None:
    """Of a state in parts the tensors are compared: which rank writes what all have is left to PyTorch."""
    in_parts = {file.parent for file in other.glob("state/*/*")}
    for directory in in_parts:
        expected = read_parts(directory, None)
        found = read_parts(one / directory.relative_to(other), None)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    left, right = files_of(one), files_of(other)
    assert left.keys() == right.keys()
    assert [name for name in right if left[name] != right[name] and name.count("/") < 2] == []


@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_run_resumes_bit_for_bit(runs: Path, way: str) -> None:
    assert_same_run(runs / f"{way}: stopped", runs / f"{way}: undisturbed")


@pytest.mark.parametrize("order", ["two, then one", "one, then two"])
@pytest.mark.parametrize("way", PLAIN)
def test_another_number_of_devices_goes_on_with_the_same_losses(runs: Path, way: str, order: str) -> None:
    for numbers in ("loss", "gradNorm", "evalLoss"):
        assert column(runs / f"{way}: {order}", numbers) == pytest.approx(
            column(runs / f"{way}: one device", numbers), rel=1e-5, abs=1e-5
        )


def test_what_is_saved_for_use_is_what_one_device_saves(runs: Path) -> None:
    for way in PLAIN:
        one, two = runs / f"{way}: one device" / "epoch-2", runs / f"{way}: one, then two" / "epoch-2"
        assert largest_difference(trained_weights(two), trained_weights(one)) < 1e-3
        beside = {
            name: content
            for name, content in files_of(one).items()
            if not name.startswith("state/") and not name.endswith(".safetensors")
        }
        assert {name: files_of(two).get(name) for name in beside} == beside


@pytest.mark.parametrize("run", ["full: undisturbed", "several files"])
def test_a_full_checkpoint_loads_in_plain_transformers_and_has_the_validation_loss(
    runs: Path, run: str
) -> None:
    checkpoint = runs / run / "epoch-2"
    plain, loading = cast(
        "tuple[PreTrainedModel, LoadingInfo]",
        AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True),
    )
    assert not loading["missing_keys"]
    assert not loading["mismatched_keys"]
    loss = evaluate(forward_of(plain), VALIDATION_ROWS, batch_size=4).loss
    assert loss == pytest.approx(column(runs / run, "evalLoss")[-1], rel=1e-5)


def test_weights_of_several_files_are_of_the_size_that_is_allowed_and_are_resumed_from(runs: Path) -> None:
    files = sorted((runs / "several files" / "epoch-2").glob("*.safetensors"))
    assert len(files) > 2
    assert max(file.stat().st_size for file in files[1:-1]) < 2 * SMALL_FILE
    assert column(runs / "several files", "loss") == pytest.approx(
        column(runs / "full: undisturbed", "loss"), rel=1e-6
    )


def test_a_run_in_a_bucket_has_the_files_of_all_ranks_and_resumes(
    runs: Path, s3: tuple[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, environment = s3
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run = RunDirectory.open(bucket)
    assert [checkpoint.name for checkpoint in run.checkpoints()] == ["epoch-0", "epoch-1", "epoch-2"]
    assert run.newest() == "epoch-2"
    with run.local_copy("epoch-2") as copy:
        assert_same_checkpoint(copy, runs / "lora: undisturbed" / "epoch-2")


@pytest.mark.parametrize("way", PLAIN)
def test_one_device_loads_from_a_shared_run_what_it_would_load_from_its_own(
    model: Path, runs: Path, way: str
) -> None:
    start = job(model, runs / f"{way}: one, then two", PLAIN[way], 1, COPIES).start
    loaded = load(start, torch.device("cpu"))
    assert start.resume_from == "epoch-2"
    assert loaded.saved is not None
    assert loaded.saved.position.step == 9
    for name, weight in loaded.saved.optimizer.items():
        if name.endswith("exp_avg"):
            parameter = name.removesuffix(".exp_avg")
            assert weight.shape == loaded.model.get_parameter(parameter).shape


def die_in_the_second_checkpoint(model: Path, run: Path, times: Path, rank: int, num_devices: int) -> None:
    """The second rank is killed in the middle of its part of the state; the first notes when it has ended."""
    steps = itertools.count(1)

    def stop_requested() -> bool:
        if next(steps) == 6 and rank == 1:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        return False

    began = time.monotonic()
    try:
        mine = job_of_two(model, run, WAYS["lora"], rank)
        train(mine, Worker(rank, num_devices, torch.device("cpu"), lambda _: None, stop_requested))
    finally:
        if rank == 0:
            times.write_text(str(time.monotonic() - began))


def test_a_rank_that_dies_while_all_save_ends_the_others_and_the_earlier_checkpoint_is_whole(
    model: Path, runs: Path, tmp_path: Path
) -> None:
    run, times = tmp_path / "run", tmp_path / "seconds"
    job(model, run, WAYS["lora"], 2, FSDP)

    ended = in_processes(2, partial(die_in_the_second_checkpoint, model, run, times))

    assert ended == [1, -signal.SIGXFSZ]
    assert float(times.read_text()) < 30
    assert saved_in(run) - {".epoch-1.partial"} == {"epoch-0"}
    resumed = job(model, run, WAYS["lora"], 2, FSDP)
    assert resumed.start.resume_from == "epoch-0"
    assert in_processes(2, partial(resume, model, run)) == [0, 0]
    assert_same_run(run, runs / "lora: undisturbed")


def resume(model: Path, run: Path, rank: int, num_devices: int) -> None:
    assert num_devices == 2
    on_two(model, run, WAYS["lora"], rank)
