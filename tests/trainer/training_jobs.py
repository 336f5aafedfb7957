"""Jobs for tests, and ways to train them without Ray: in this process, or in several that form a group."""

from __future__ import annotations

import faulthandler
import itertools
import json
import multiprocessing
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from peft import PeftModel
from pydantic import JsonValue
from safetensors.torch import load_file
from transformers import PreTrainedModel

from finetune_api.manifest import read_spec
from finetune_api.numbers import ResolvedPrecision, numbers
from finetune_api.sharding import COPIES, Sharding
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import ProgressRecord
from finetune_trainer.data.layout import Padded
from finetune_trainer.data.tokens import TokenizedRows
from finetune_trainer.model.load import Shape
from finetune_trainer.parallel.one_device import OneDevice
from finetune_trainer.plan.prepare import Prepared, plan_of, statistics_of
from finetune_trainer.report.reporter import SAVING
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.tasks.language import LanguageObjective
from finetune_trainer.training.forward import Forward
from finetune_trainer.training.job import Outcome, Start, TrainingJob, Worker
from finetune_trainer.training.loop import train

Fields = dict[str, JsonValue]

LORA: Fields = {"lora_config": {"r": 8}}
FULL: Fields = {}

SECONDS = 120
"""The time that processes of a test have."""

FIRST_TEXT_TOKEN, TINY_VOCABULARY = 4, 1024
"""The first token of the tiny model that stands for text, and the size of its vocabulary."""


def rows_of(
    lengths: Sequence[int], *, seed: int = 0, share_trained: float = 0.5, vocabulary: int = TINY_VOCABULARY
) -> TokenizedRows:
    """Rows of random tokens. `share_trained` of them, and the last of each row, count in the loss."""
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    trained = random.random(offsets[-1]) < share_trained
    trained[offsets[1:] - 1] = True
    return TokenizedRows(
        input_ids=random.integers(FIRST_TEXT_TOKEN, vocabulary, offsets[-1]).astype(np.int32),
        trained=trained,
        offsets=offsets,
        lines=np.arange(1, len(lengths) + 1),
    )


def some_rows(count: int, seed: int = 0) -> TokenizedRows:
    """Rows of 5 to 59 random tokens, in which very different numbers of tokens count in the loss."""
    random = np.random.default_rng(seed)
    lengths = random.integers(5, 60, count)
    parts = [
        rows_of([length], seed=int(random.integers(2**31)), share_trained=random.random())
        for length in lengths
    ]
    return TokenizedRows(
        input_ids=np.concatenate([part.input_ids for part in parts]),
        trained=np.concatenate([part.trained for part in parts]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        lines=np.arange(1, count + 1),
    )


TRAINING_ROWS = some_rows(21)
"""No batch size and no number of devices in tests divides 21: the last step of an epoch has fewer rows, and
empty micro-batches."""
VALIDATION_ROWS = some_rows(7, seed=1)


def spec_of(model: Path, way: Fields, **fields: JsonValue) -> FineTuneJobSpec:
    """A spec that keeps every checkpoint; it warms up in two steps, and changes the tiny model noticeably."""
    chosen: Fields = {
        "model_id": str(model),
        "train_path": "train.jsonl",
        "valid_path": "validation.jsonl",
        "learning_rate": 1e-3,
        "num_warmup_steps": 2,
        "num_epochs": 3,
        "train_batch_size_per_device": 4,
        "num_checkpoints_to_keep": 100,
    }
    return read_spec({**chosen, **way, **fields})


def eight_rows_a_step(devices: int) -> Fields:
    """Steps of 8 rows, in four micro-batches of 2 in all.

    Of `TRAINING_ROWS` the last step of an epoch has fewer rows, and the second of two devices none.
    """
    return {
        "num_devices": devices,
        "train_batch_size_per_device": 2,
        "gradient_accumulation_steps": 4 // devices,
    }


def job_of(
    model: Path,
    run_directory: Path | str,
    way: Fields,
    *,
    train: TokenizedRows = TRAINING_ROWS,
    validation: TokenizedRows | None = VALIDATION_ROWS,
    sharding: Sharding = COPIES,
    **fields: JsonValue,
) -> TrainingJob:
    """A job that resumes from the newest checkpoint or snapshot in the run directory, if there is one."""
    spec = spec_of(model, way, **fields)
    computed = numbers(spec, rows=len(train), longest_row=train.longest, model_context_length=2048)
    run = RunDirectory.open(str(run_directory))
    run.claim("kind: FineTuneJob", "a test")
    nothing = Shape(0, 0, 0, 0, 0, None, ())
    return TrainingJob(
        name="test",
        start=Start(spec, "fp32", str(run_directory), run.newest(), sharding),
        prepared=Prepared(
            spec=spec,
            numbers=computed,
            plan=plan_of(computed, nothing, train, validation, truncated_rows=0),
            shape=nothing,
            train=train,
            validation=validation,
            token_statistics=statistics_of(train, train),
            warnings=(),
        ),
    )


def forward_of(
    model: PreTrainedModel | PeftModel,
    *,
    dtype: ResolvedPrecision = "fp32",
    pad_token_id: int = 3,
    length: int | None = None,
) -> Forward:
    """The forward pass of language modelling on one CPU, padded to the longest row by default."""
    parallel = OneDevice(torch.device("cpu"))
    return Forward(parallel.place(LanguageObjective(model)), parallel, Padded(pad_token_id, length), dtype)


@dataclass
class Course:
    """When a run is stopped or killed; by default it trains to the end."""

    stop_after: int | None = None
    """The step, counted in this process, in which a stop is requested."""
    stopped_rank: int = 0
    """The rank at which it is requested."""
    die_after: int | None = None
    """Rank 0 is killed when it reports this step."""
    die_writing_after: int | None = None
    """When rank 0 has reported this step, and what it saved before is complete, it is killed in the middle of
    the next file of more than 50 kB."""

    def worker(self, rank: int, num_devices: int, records: list[ProgressRecord]) -> Worker:
        """A worker on the CPU that adds what it reports to `records`."""
        asked = itertools.count(1)

        def report(record: ProgressRecord) -> None:
            records.append(record)
            if record.progress is None:
                return
            step = record.progress.step
            if step == self.die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            if step == self.die_writing_after:
                wait_for_saving()
                # Python ignores the signal by which the system kills a process that writes beyond its limit.
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))

        def stop_requested() -> bool:
            return next(asked) == self.stop_after and rank == self.stopped_rank

        return Worker(rank, num_devices, torch.device("cpu"), report, stop_requested)


TO_THE_END = Course()


def wait_for_saving() -> None:
    """Returns when nothing is being saved in the background."""
    for thread in threading.enumerate():
        if thread.name == SAVING:
            thread.join()


def train_here(job: TrainingJob, *, stop_after: int | None = None) -> list[ProgressRecord]:
    """Trains in this process, with one thread, and returns the progress records that were reported."""
    torch.set_num_threads(1)
    records: list[ProgressRecord] = []
    outcome = train(job, Course(stop_after).worker(0, 1, records))
    assert outcome is (Outcome.FINISHED if stop_after is None else Outcome.STOPPED)
    return records


def train_in_processes(
    *jobs: TrainingJob, course: Course = TO_THE_END, ending: int = 0, seconds: float = SECONDS
) -> None:
    """Trains jobs one after the other, in as many processes as they have devices. These form a gloo group.

    Fails when a process ends with another exit code than `ending`.
    """
    train_all = partial(_train_all, jobs, course)
    ended = in_processes(jobs[0].prepared.numbers.num_devices, train_all, seconds=seconds)
    assert all(code == ending for code in ended), f"the processes ended with {ended}"


def _train_all(jobs: Sequence[TrainingJob], course: Course, rank: int, num_devices: int) -> None:
    for job in jobs:
        train(job, course.worker(rank, num_devices, []))


def in_processes(
    count: int, work: Callable[[int, int], None], *, seconds: float = SECONDS
) -> list[int | None]:
    """Calls `work(rank, count)` in `count` processes, with one thread each, and returns their exit codes.

    More than one form a gloo group. `work` must be importable. A process that takes longer is killed.
    """
    context = multiprocessing.get_context("forkserver")
    # The server imports what takes seconds once, and computes nothing: its children fork safely.
    context.set_forkserver_preload(
        ["torch", "peft", "transformers.models.llama.modeling_llama", "finetune_trainer.training.loop"]
    )
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port: int = unused.getsockname()[1]
    processes: list[ForkServerProcess] = [
        context.Process(target=_work, args=(work, rank, count, port)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=seconds)
    for process in processes:
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in processes]


def _work(work: Callable[[int, int], None], rank: int, count: int, port: int) -> None:
    faulthandler.enable()  # one that is aborted says where it was
    torch.set_num_threads(1)
    if count > 1:
        store = f"tcp://127.0.0.1:{port}"
        dist.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=count, timeout=timedelta(seconds=60)
        )
    work(rank, count)
    if count > 1:
        dist.destroy_process_group()


def lines_of(run_directory: Path | str) -> list[dict[str, JsonValue]]:
    """The lines of metrics.jsonl, without times and speeds, which differ from run to run."""
    lines = [json.loads(line) for line in (Path(run_directory) / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in {"time", "tokensPerSecond"}}
        for line in lines
    ]


def column(run_directory: Path | str, name: str) -> list[float]:
    """The values of `name` in metrics.jsonl, in order; `loss` is of steps and `evalLoss` of validations."""
    return [float(str(line[name])) for line in lines_of(run_directory) if name in line]


def saved_in(run_directory: Path | str) -> set[str]:
    """The names of the checkpoints and snapshots in a run directory, and of all its other directories."""
    return {entry.name for entry in Path(run_directory).iterdir() if entry.is_dir()}


def files_of(checkpoint: Path, *, card: bool = True) -> dict[str, bytes]:
    """The content of all files of a checkpoint, without complete.json, which holds a time.

    Its `card` says how long the run was to be.
    """
    files = {
        file.relative_to(checkpoint).as_posix(): file.read_bytes()
        for file in checkpoint.rglob("*")
        if file.is_file()
    }
    left_out = {"complete.json", *([] if card else ["README.md"])}
    return {name: content for name, content in files.items() if name not in left_out}


def trained_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint's safetensors file."""
    file = checkpoint / "adapter_model.safetensors"
    return load_file(file if file.is_file() else checkpoint / "model.safetensors")


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """The largest absolute difference of any weight or gradient of the same model."""
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)
