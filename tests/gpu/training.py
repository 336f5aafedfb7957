"""Jobs that are trained by the trainer's own loop: in this process, or in one for each of several ranks."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path

import torch
import torch.distributed as dist
from pydantic import JsonValue
from tests.trainer.training_jobs import Fields, column, spec_of
from torch.multiprocessing.spawn import spawn

from finetune_api.numbers import resolved_dtype
from finetune_api.sharding import COPIES, Sharding
from finetune_trainer.plan.prepare import Prepared, prepare
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.training.job import Outcome, Start, TrainingJob, Worker
from finetune_trainer.training.loop import train


def prepared_job(model: Path, rows: Path, way: Fields, **fields: JsonValue) -> Prepared:
    """A job on these rows, without validation."""
    return prepare(spec_of(model, way, train_path=str(rows), valid_path=None, **fields))


def losses(
    prepared: Prepared,
    run_directory: Path,
    device: str = "cuda",
    sharding: Sharding = COPIES,
    stop_after: int | None = None,
) -> list[float]:
    """Trains the job on one device, in this process, from where it stands, and returns the loss of each step.

    To its end, or until a stop is requested after so many steps.
    """
    job = _job(prepared, run_directory, sharding)
    steps = itertools.count(1)
    worker = Worker(0, 1, torch.device(device), lambda _: None, lambda: next(steps) == stop_after)
    assert train(job, worker) is (Outcome.FINISHED if stop_after is None else Outcome.STOPPED)
    return column(run_directory, "loss")


def losses_of_ranks(
    prepared: Prepared, run_directory: Path, backend: str, devices: list[str], sharding: Sharding = COPIES
) -> list[float]:
    """The same with a rank on each of the devices, which form a group of this backend.

    Raises ProcessRaisedException with what went wrong in a rank.
    """
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port: int = unused.getsockname()[1]
    arguments = (_job(prepared, run_directory, sharding), backend, devices, port)
    spawn(_rank, arguments, nprocs=len(devices))  # type: ignore[no-untyped-call]
    return column(run_directory, "loss")


def _rank(rank: int, job: TrainingJob, backend: str, devices: list[str], port: int) -> None:
    device = torch.device(devices[rank])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(devices)
    )
    assert train(job, Worker(rank, len(devices), device, lambda _: None, lambda: False)) is Outcome.FINISHED
    dist.destroy_process_group()


def _job(prepared: Prepared, run_directory: Path, sharding: Sharding) -> TrainingJob:
    run = RunDirectory.open(str(run_directory))
    run.claim("kind: FineTuneJob", "a test")
    dtype = resolved_dtype(prepared.spec, on_gpu=True)
    start = Start(prepared.spec, dtype, run.path, run.newest(), sharding)
    return TrainingJob("test", start, prepared)
