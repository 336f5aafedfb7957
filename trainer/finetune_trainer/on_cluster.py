"""One attempt at a FineTuneJob in a Ray cluster: `python -m finetune_trainer.on_cluster` on the head, where nothing is trained.

It reads the job and its `Assignment`, trains on the cluster's workers, and tells how it goes in the config
map of the progress record. It ends with 0 when the run has finished, with 1 when it failed, and the record
says why; stopped by SIGTERM or because a node is taken away, with 143.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NoReturn

import ray

from finetune_api.assignment import ASSIGNMENT, Assignment
from finetune_api.failure import FailureClass
from finetune_api.manifest import Manifest, read_manifest
from finetune_api.paths import JOB_DIRECTORY, JOB_FILE, run_directory_name
from finetune_api.retention import best
from finetune_api.status import Failure, ProgressRecord
from finetune_trainer.failures import failure_of
from finetune_trainer.plan.machine import NO_FLASH_ATTENTION
from finetune_trainer.plan.prepare import prepare
from finetune_trainer.report.config_map import ConfigMap
from finetune_trainer.report.record_writer import RecordWriter
from finetune_trainer.stop_signals import stop_on_signals
from finetune_trainer.storage.open import open_storage
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.training.loop import Outcome
from finetune_trainer.workers.ray_train import QUIET_RAY, follow, job_to_train, quieten_ray

FINISHED, FAILED, STOPPED = 0, 1, 128 + signal.SIGTERM
"""Exit codes."""

SECONDS_BETWEEN_LINES = 60.0
"""An epoch may take hours."""


def main() -> int:
    """Runs the attempt that the environment tells of; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if ASSIGNMENT not in os.environ:
        sys.exit(
            f"{ASSIGNMENT} is not set: the operator starts this program; on one machine use `finetune run`"
        )
    assignment = Assignment.model_validate_json(os.environ[ASSIGNMENT])
    return run_attempt(
        assignment, Path(JOB_DIRECTORY / JOB_FILE), ConfigMap.in_this_pod(assignment.config_map)
    )


def run_attempt(assignment: Assignment, job_file: Path, config_map: ConfigMap) -> int:
    """Trains, and returns the exit code."""
    # Until training can be stopped at a step, there is nothing to save.
    signal.signal(signal.SIGTERM, _stop_at_once)
    with RecordWriter(config_map.write) as writer:
        account = Account(assignment.attempt, writer)
        try:
            return _train(assignment, read_manifest(job_file), config_map.namespace, account)
        except KeyboardInterrupt:
            return STOPPED
        except Exception as error:  # noqa: BLE001 - the record names whatever it is
            failure = failure_of(error)
            if failure.failure_class is FailureClass.UNKNOWN:
                traceback.print_exc()
            account.failed(failure)
            return FAILED


class Account:
    """What an attempt tells of itself: the record for the operator, and lines for people."""

    def __init__(self, attempt: int, writer: RecordWriter) -> None:
        self._writer = writer
        self._record = ProgressRecord(attempt=attempt)
        self._epochs: str | None = None
        self._line_at = -SECONDS_BETWEEN_LINES

    def say(self, line: str) -> None:
        """A line for people."""
        print(line, flush=True)

    def known(self, record: ProgressRecord) -> None:
        """All that is known now."""
        self._record = record.model_copy(update={"attempt": self._record.attempt})
        self._writer.put(self._record)

    def progress(self, record: ProgressRecord) -> None:
        """A record from training; a line for every epoch, and for a step where the last line is some time ago."""
        self.known(record)
        progress, evaluation, now = record.progress, record.evaluation, time.monotonic()
        if progress is None or (
            progress.epochs == self._epochs and now - self._line_at < SECONDS_BETWEEN_LINES
        ):
            return
        self._epochs, self._line_at = progress.epochs, now
        words = [
            f"epoch {progress.epochs}",
            f"step {progress.step}/{record.plan.total_steps if record.plan else '?'}",
        ]
        if progress.train_loss is not None:
            words.append(f"loss {progress.train_loss:.4f}")
        if evaluation is not None:
            words.append(f"validation loss {evaluation.loss:.4f}, perplexity {evaluation.perplexity:.4g}")
        self.say(", ".join(words))

    def finished(self, record: ProgressRecord) -> None:
        """The run has its result."""
        self.known(record.model_copy(update={"finished": True}))
        model = best(record.checkpoints)
        self.say(f"finished; the model is {model.path}" if model else "finished")

    def stopped(self) -> None:
        """The run was stopped; the record stays as it is."""
        step = self._record.progress.step if self._record.progress else 0
        self.say(f"stopped after step {step}; a snapshot is saved")

    def failed(self, failure: Failure) -> None:
        """The attempt has failed."""
        self.known(self._record.model_copy(update={"failure": failure}))
        self.say(f"failed: {failure.failure_class}: {failure.message}")


def _train(assignment: Assignment, manifest: Manifest, namespace: str, account: Account) -> int:
    name = manifest.metadata.name
    run = RunDirectory(
        open_storage(assignment.storage).child(run_directory_name(namespace, name, assignment.uid))
    )
    result = run.result()
    if result is not None:
        account.say(f"{run.path} holds this run, finished")
        account.finished(result)
        return FINISHED
    # Whatever an attempt before this one left in the record is not true of this one.
    account.known(ProgressRecord(checkpoints=run.checkpoints()))

    prepared = prepare(manifest.spec)
    warnings = [*manifest.warnings, *prepared.warnings]
    # The head has no GPU, by which transformers would tell, but the workers' image.
    if prepared.spec.flash_attention_2 and not (assignment.on_gpu and find_spec("flash_attn")):
        warnings.append(NO_FLASH_ATTENTION)
    for warning in warnings:
        account.say(f"warning: {warning}")
    plan = prepared.plan
    account.say(
        f"prepared {plan.rows} rows with {plan.tokens} tokens: {plan.total_epochs} epochs of"
        f" {plan.steps_per_epoch} steps"
    )
    run.claim(manifest.to_yaml(), run.path.rpartition("/")[2])
    account.known(ProgressRecord(plan=plan, checkpoints=run.checkpoints()))
    job = job_to_train(name, prepared, run, on_gpu=assignment.on_gpu)
    if job.resume_from is not None:
        account.say(f"going on from {run.checkpoint_path(job.resume_from)}")

    with _ray(), stop_on_signals(account.say) as stop:
        notice, failure = follow(
            job,
            on_gpu=assignment.on_gpu,
            resources=assignment.worker_resources,
            threads=assignment.worker_threads,
            report=account.progress,
            stop=stop,
        )
    if notice.record is not None:
        account.known(notice.record)
    if failure is not None:
        account.failed(failure)
        return STOPPED if notice.outcome == Outcome.STOPPED else FAILED
    if notice.outcome == Outcome.STOPPED:
        account.stopped()
        return STOPPED
    account.finished(notice.record or ProgressRecord(plan=plan, checkpoints=run.checkpoints()))
    return FINISHED


@contextmanager
def _ray() -> Iterator[None]:
    """The Ray cluster that this node is the head of."""
    quieten_ray()
    ray.init(
        address="auto", runtime_env={"env_vars": QUIET_RAY}, log_to_driver=False, logging_level=logging.ERROR
    )
    try:
        yield
    finally:
        ray.shutdown()
        # Ray has put a handler of its own in place.
        signal.signal(signal.SIGTERM, _stop_at_once)


def _stop_at_once(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(STOPPED)


if __name__ == "__main__":
    sys.exit(main())
