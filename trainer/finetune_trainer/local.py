"""A FineTuneJob on this machine: with one device in this process, with more on a Ray of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from pydantic import JsonValue

from finetune_api.changed_fields import ChangedField
from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.manifest import Manifest, parse_manifest
from finetune_api.paths import run_directory_name
from finetune_api.record import trained, with_record
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, Phase, ProgressRecord
from finetune_trainer.attempt import Observer, attempt, finished_before
from finetune_trainer.storage.inputs import digest
from finetune_trainer.storage.lock import locked
from finetune_trainer.storage.open import open_storage
from finetune_trainer.storage.run_directory import JOB, RunDirectory
from finetune_trainer.training.job import Outcome
from finetune_trainer.workers.environment import without_bitsandbytes
from finetune_trainer.workers.workers import NOT_SAVED, Ended, Workers

if TYPE_CHECKING:
    from finetune_trainer.plan.machine import Machine

DEFAULT_STORAGE = "./finetune-runs"
DEFAULT_NAMESPACE = "default"
DEFAULT_NAME = "finetune"

NOT_TRAINING = (
    "suspend",
    "run_policy",
    "storage",
    "output",
    "cluster",
    "logger",
    "sample_prompts",
    "sample_max_tokens",
    "custom_model_tag",
    "parallelism",
    "cpu_offload",
    "deepspeed",
)
"""Fields that do not change what is trained: a run that differs in nothing else resumes the earlier one."""

NOT_PUSHED = "training has finished, and was stopped before the model was pushed; run again to push it"

OTHER_ROWS = (
    "has changed since this run began, and what is shown was trained on the earlier rows; to train on these,"
    " use --restart, or give the job another name or another --storage"
)


@dataclass(frozen=True)
class LocalRun:
    """How a run ended."""

    status: FineTuneJobStatus
    run_directory: str
    report: str | None = None
    """The path of the run's page, if there is one."""


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


def extended(path: str, epochs: int, changes: Sequence[ChangedField] = ()) -> Manifest:
    """The job that goes on from a finished run at this path for so many epochs more, from where it ended.

    `changes` are made to it besides. Raises FineTuneError (InvalidSpec) when there is no run there, or it has
    not finished.
    """
    run = RunDirectory.open(path)
    text, result = run.job(), run.result()
    if text is None:
        what = "is not the directory of a run: it has no job.yaml"
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{run.path}: {what}")
    if result is None or result.plan is None or result.progress is None:
        what = "has not finished; `finetune run` with its manifest resumes it"
        raise FineTuneError(FailureClass.INVALID_SPEC, f"{run.path}: {what}")
    source = run.checkpoint_path(JOB)
    spec = parse_manifest(text, source, name=DEFAULT_NAME).spec
    step, of_an_epoch = result.progress.step, result.plan.steps_per_epoch
    length: dict[str, JsonValue] = {"num_epochs": step // of_an_epoch + epochs}
    if spec.max_steps is not None:
        length = {"max_steps": step + epochs * of_an_epoch}
    fields = {"resume_from": run.path, "min_update_steps": None, "min_num_update_steps": None, **length}
    return parse_manifest(
        text,
        source,
        [*(ChangedField((name,), value) for name, value in fields.items()), *changes],
        name=DEFAULT_NAME,
    )


def _changed(run: RunDirectory) -> list[str]:
    """The files of rows that are not what they were when the run began; one that is gone is none of them."""
    changed = []
    for path, before in run.inputs().items():
        with suppress(FineTuneError):
            if digest(path) != before:
                changed.append(path)
    return changed


def _asked(spec: FineTuneJobSpec, devices: int | None) -> FineTuneJobSpec:
    return spec if devices is None else spec.model_copy(update={"num_devices": devices})


def run_locally(
    manifest: Manifest, *, storage: str, devices: int | None, observer: Observer, restart: bool = False
) -> LocalRun:
    """Trains on this machine; resumes an earlier run, and only shows one that has finished.

    With `restart` it deletes that run, of which all else is checked before, and trains anew.

    Raises FineTuneError, with nothing written, for what is wrong before training; what goes wrong in
    training is in the status. Ctrl-C and SIGTERM end the run at its next step with a snapshot, and running
    again resumes from it; a second one ends it at once.
    """
    run = local_run_directory(manifest, storage, devices)
    result = None if restart else run.result()
    if result is not None:
        observer.say(f"{run.path}: this run has already finished; --restart deletes it and trains again")
        for path in _changed(run):
            observer.say(f"warning: {path} {OTHER_ROWS}")
        ended = finished_before(manifest.spec, run, result, observer, locked=locked)
        status = _status(ended, NOT_PUSHED if ended.trained else "training had finished before")
        return LocalRun(status, run.path, run.report())

    without_bitsandbytes(manifest.spec)
    from finetune_trainer.plan.machine import fit_to_machine, this_machine

    machine = this_machine()
    spec, remarks = fit_to_machine(manifest.spec, machine, devices)
    observer.say(f"training on {machine.description}")
    for remark in remarks:
        observer.say(f"warning: {remark}")
    asked = manifest.model_copy(update={"spec": _asked(manifest.spec, devices)})
    ended = attempt(
        asked,
        spec,
        run,
        _workers(machine, spec),
        observer,
        resources=machine.resources,
        locked=locked,
        restart=restart,
    )
    status = _status(ended, _message(ended, spec.early_stopping_patience))
    if ended.began is None:
        return LocalRun(status, run.path)
    now = datetime.now(UTC)
    held = round((now - ended.began).total_seconds() * spec.num_devices, 1)
    times = {"start_time": ended.began, "completion_time": now, "device_seconds": held}
    return LocalRun(status.model_copy(update=times), run.path, run.report())


def _workers(machine: Machine, spec: FineTuneJobSpec) -> Workers:
    """This process for one device, local Ray for more."""
    on_gpu, devices = machine.gpus > 0, spec.num_devices
    if devices == 1:
        import torch

        from finetune_trainer.workers.in_process import InProcess

        return InProcess(torch.device("cuda" if on_gpu else "cpu"), threads=machine.cpus)

    from finetune_trainer.workers.local_ray import local_ray
    from finetune_trainer.workers.ray_train import RayWorkers

    return RayWorkers(
        connect=partial(local_ray, cpus=max(machine.cpus, devices), gpus=machine.gpus),
        num_devices=devices,
        on_gpu=on_gpu,
        resources={"CPU": 1},
        threads=max(1, machine.cpus // devices),
        on_this_machine=True,
    )


def _message(ended: Ended, patience: int | None) -> str:
    """How a run ended, for people; `patience` is that with which it may have been stopped early."""
    record = ended.record or ProgressRecord()
    if ended.failure is not None:
        return ended.failure.message
    if ended.trained:
        return NOT_PUSHED
    if ended.outcome is Outcome.STOPPED:
        if record.progress is None:
            return "stopped before a step was trained; run again to train"
        steps = record.plan.total_steps if record.plan else 0
        stopped = f"stopped after step {record.progress.step} of {steps}"
        if not ended.saved:
            return f"{stopped}; {NOT_SAVED}; run again to resume from the newest checkpoint"
        return f"{stopped}; run again to resume"
    return trained(record.plan, record.progress, patience if record.stopped_early else None)


def _status(ended: Ended, message: str) -> FineTuneJobStatus:
    """The status that a FineTuneJob which ended so would have on a cluster."""
    if ended.failure is not None:
        phase = Phase.FAILED
    else:
        phase = Phase.SUSPENDED if ended.outcome is Outcome.STOPPED else Phase.SUCCEEDED
    status = FineTuneJobStatus(phase=phase, message=message, failure=ended.failure)
    return with_record(status, ended.record or ProgressRecord())
