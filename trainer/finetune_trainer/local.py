"""A FineTuneJob on this machine: local Ray, the same trainer as on a cluster, no network."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import ray

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.fields import scheme
from finetune_api.manifest import Manifest
from finetune_api.paths import run_directory_name
from finetune_api.retention import best
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, Phase, ProgressRecord
from finetune_trainer.plan.machine import Machine, fit_to_machine, this_machine
from finetune_trainer.plan.prepare import Prepared, prepare
from finetune_trainer.stop_signals import stop_on_signals
from finetune_trainer.storage.failure import explained
from finetune_trainer.storage.open import open_storage
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.training.loop import Outcome, TrainingJob
from finetune_trainer.workers.ray_train import follow, job_to_train, quieten_ray

DEFAULT_STORAGE = "./finetune-runs"
DEFAULT_NAMESPACE = "default"

NOT_TRAINING = ("suspend", "run_policy", "storage", "cluster", "logger", "custom_model_tag")
"""Fields that do not change what is trained: runs that differ in nothing else are the same run, and go on
from each other."""


SMALLEST_OBJECT_STORE = 128 * 2**20
"""Bytes; Ray takes no less than 75 MB."""


class Listener(Protocol):
    """Who is told how a run goes."""

    def say(self, line: str) -> None:
        """A remark for people."""

    def prepared(self, prepared: Prepared) -> None:
        """The job is ready to train."""

    def progress(self, record: ProgressRecord) -> None:
        """The newest record; called in the main thread, a few times a second at most."""


@dataclass(frozen=True)
class LocalRun:
    """How a run ended."""

    status: FineTuneJobStatus
    run_directory: str


def run_uid(spec: FineTuneJobSpec) -> str:
    """Names a run by what it trains, as a resource's UID does on a cluster: ten hexadecimal digits."""
    fields = spec.model_dump(mode="json", exclude_unset=True, exclude=set(NOT_TRAINING))
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:10]


def local_run_directory(manifest: Manifest, storage: str, devices: int | None) -> RunDirectory:
    """Where `run_locally` with these arguments trains."""
    uid = run_uid(_asked(manifest.spec, devices))
    namespace = manifest.metadata.namespace or DEFAULT_NAMESPACE
    return RunDirectory(
        open_storage(storage).child(run_directory_name(namespace, manifest.metadata.name, uid))
    )


def _asked(spec: FineTuneJobSpec, devices: int | None) -> FineTuneJobSpec:
    return spec if devices is None else spec.model_copy(update={"num_devices": devices})


def run_locally(manifest: Manifest, *, storage: str, devices: int | None, listener: Listener) -> LocalRun:
    """Trains on this machine, from the newest complete checkpoint if there is one; a run that has finished is only shown.

    Raises FineTuneError, with nothing written, for what is wrong before training; what goes wrong in training
    is in the status. Ctrl-C and SIGTERM end the run at its next step with a snapshot, and running again goes
    on; a second one ends it at once.
    """
    machine = this_machine()
    spec, remarks = fit_to_machine(manifest.spec, machine, devices)
    listener.say(f"training on {machine.description}")
    for remark in (*manifest.warnings, *remarks):
        listener.say(f"warning: {remark}")
    run = local_run_directory(manifest, storage, devices)
    finished = run.result()
    if finished is not None:
        listener.say(f"{run.path} holds this run, finished; delete it to train again")
        return LocalRun(_status(finished, Phase.SUCCEEDED, "training had finished before"), run.path)

    prepared = prepare(spec)
    for remark in prepared.warnings:
        listener.say(f"warning: {remark}")
    with _alone_in(run):
        run.claim(
            manifest.model_copy(update={"spec": _asked(manifest.spec, devices)}).to_yaml(),
            run.path.rpartition("/")[2],
        )
        job = job_to_train(manifest.metadata.name, prepared, run, on_gpu=machine.gpus > 0)
        if job.resume_from is not None:
            listener.say(f"going on from {run.checkpoint_path(job.resume_from)}")
        listener.prepared(prepared)
        return LocalRun(_train(job, prepared, machine, listener), run.path)


def _train(job: TrainingJob, prepared: Prepared, machine: Machine, listener: Listener) -> FineTuneJobStatus:
    devices = job.numbers.num_devices
    started = datetime.now(UTC)
    with (
        _ray(machine, prepared),
        stop_on_signals(listener.say) as stop,
    ):  # Ray puts a SIGTERM handler of its own in place
        notice, failure = follow(
            job,
            on_gpu=machine.gpus > 0,
            resources={"CPU": 1},
            threads=max(1, machine.cpus // devices),
            report=listener.progress,
            stop=stop,
        )
    record = (notice.record or ProgressRecord(plan=prepared.plan)).model_copy(update={"failure": failure})
    if failure is not None:
        status = _status(record, Phase.FAILED, failure.message)
    elif notice.outcome == Outcome.STOPPED:
        step = record.progress.step if record.progress else 0
        status = _status(
            record,
            Phase.SUSPENDED,
            f"stopped after step {step} of {prepared.plan.total_steps}; run again to go on from there",
        )
    else:
        status = _status(record, Phase.SUCCEEDED, f"trained {prepared.plan.total_steps} steps")
    ended = datetime.now(UTC)
    held = round((ended - started).total_seconds() * devices, 1)
    return status.model_copy(update={"start_time": started, "completion_time": ended, "device_seconds": held})


def _status(record: ProgressRecord, phase: Phase, message: str) -> FineTuneJobStatus:
    """The status that a FineTuneJob with this record would have on a cluster."""
    chosen = best(record.checkpoints)
    return FineTuneJobStatus(
        phase=phase,
        message=message,
        plan=record.plan,
        progress=record.progress,
        evaluation=record.evaluation,
        checkpoints=record.checkpoints,
        best_checkpoint=chosen,
        latest_checkpoint=next((checkpoint for checkpoint in record.checkpoints if checkpoint.latest), None),
        model_path=chosen.path if chosen else None,
        failure=record.failure,
    )


@contextmanager
def _alone_in(run: RunDirectory) -> Iterator[None]:
    """Holds the run directory, where it is on this machine; raises FineTuneError (StorageError) while another process holds it."""
    if scheme(run.path):
        yield
        return
    with explained(run.path):
        Path(run.path).mkdir(parents=True, exist_ok=True)
        directory = os.open(run.path, os.O_RDONLY)
    try:
        _lock(directory, run.path)
        yield
    finally:
        os.close(directory)


def _lock(directory: int, path: str) -> None:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FineTuneError(
            FailureClass.STORAGE_ERROR, f"{path}: another process is training there; wait until it has ended"
        ) from error


@contextmanager
def _ray(machine: Machine, prepared: Prepared) -> Iterator[None]:
    """A Ray of this process alone: no dashboard, no messages, and as much shared memory as the rows take."""
    quieten_ray()
    os.environ.setdefault(
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0"
    )  # nobody takes a laptop away; it would be one more process
    rows = sum(part.nbytes for part in (prepared.train, prepared.validation) if part is not None)
    ray.init(
        address="local",
        num_cpus=max(machine.cpus, prepared.numbers.num_devices),
        num_gpus=machine.gpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=SMALLEST_OBJECT_STORE + 2 * rows,
    )
    try:
        yield
    finally:
        ray.shutdown()
