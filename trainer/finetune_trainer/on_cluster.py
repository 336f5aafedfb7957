"""One attempt at a FineTuneJob in a Ray cluster: `python -m finetune_trainer.on_cluster` on the head.

Nothing is trained on the head. It reads the job and its `Assignment`, trains on the cluster's workers, and
reports in the config map of the progress record. It ends with 0 when the run has finished, with 1 when it
failed, and the record says why; stopped by SIGTERM or because a node is taken away, with 143.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from finetune_api.assignment import ASSIGNMENT, Assignment
from finetune_api.devices import worker_device
from finetune_api.failure import FailureClass
from finetune_api.manifest import Manifest, read_manifest
from finetune_api.paths import JOB_DIRECTORY, JOB_FILE, run_directory_name
from finetune_api.retention import best
from finetune_api.status import Failure, ProgressRecord
from finetune_trainer.attempt import attempt, finished_before
from finetune_trainer.plan.sharding import Device, Resources, named
from finetune_trainer.report.config_map import ConfigMap
from finetune_trainer.report.record_writer import RecordWriter
from finetune_trainer.storage.open import open_storage
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.training.job import Outcome
from finetune_trainer.workers.environment import RAY, set_defaults, without_bitsandbytes
from finetune_trainer.workers.workers import NOT_SAVED, Ended, Workers

if TYPE_CHECKING:
    from finetune_trainer.plan.prepare import Prepared

FINISHED, FAILED, STOPPED = 0, 1, 128 + signal.SIGTERM
"""Exit codes."""

SECONDS_BETWEEN_LINES = 60.0
"""An epoch may take hours."""


def main() -> int:
    """Runs the attempt that the environment describes; returns the exit code."""
    assignment = assigned()
    config_map = ConfigMap.in_this_pod(assignment.config_map)
    return run_attempt(assignment, Path(JOB_DIRECTORY / JOB_FILE), config_map)


def assigned() -> Assignment:
    """What the environment describes; ends the program, with a word, when it describes nothing."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if ASSIGNMENT not in os.environ:
        sys.exit(
            f"{ASSIGNMENT} is not set: the operator starts this program; on one machine use `finetune run`"
        )
    return Assignment.model_validate_json(os.environ[ASSIGNMENT])


def run_attempt(
    assignment: Assignment, job_file: Path, config_map: ConfigMap, workers: Workers | None = None
) -> int:
    """Trains, and returns the exit code. The workers are those of the Ray cluster by default."""

    def run(reports: AttemptReports) -> int:
        manifest = read_manifest(job_file)
        without_bitsandbytes(manifest.spec)
        return _train(
            assignment, manifest, config_map.namespace, workers or _workers(assignment, manifest), reports
        )

    return reported(assignment, config_map, run)


def reported(
    assignment: Assignment,
    config_map: ConfigMap,
    run: Callable[[AttemptReports], int],
    *,
    preparing: bool = False,
) -> int:
    """Does what `run` does, reports how it fails if it does, and returns the exit code."""
    # Until training can be stopped at a step, there is nothing to save.
    signal.signal(signal.SIGTERM, _stop_at_once)
    with RecordWriter(config_map.write) as writer:
        reports = AttemptReports(assignment.attempt, writer, preparing=preparing)
        try:
            return run(reports)
        except KeyboardInterrupt:
            return STOPPED
        except Exception as error:  # noqa: BLE001 - the record names whatever it is
            from finetune_trainer.failures import failure_of

            failure = failure_of(error)
            if failure.failure_class is FailureClass.UNKNOWN:
                traceback.print_exc()
            reports.failed(failure)
            return FAILED


class AttemptReports:
    """What an attempt says of itself: the record for the operator, and lines for people.

    See `finetune_trainer.attempt.Observer`.
    """

    def __init__(self, attempt: int, writer: RecordWriter, *, preparing: bool = False) -> None:
        self._writer = writer
        self._record = ProgressRecord(attempt=attempt, preparing=preparing)
        self._epochs: str | None = None
        self._line_at = -SECONDS_BETWEEN_LINES

    def say(self, line: str) -> None:
        """A line for people."""
        print(line, flush=True)

    def prepared(self, prepared: Prepared) -> None:
        """A line about what is going to be trained."""
        plan = prepared.plan
        self.say(f"prepared {plan.rows} rows with {plan.tokens} tokens: {plan.in_epochs}")

    def progress(self, record: ProgressRecord) -> None:
        """A record; a line for every epoch, and where the last line is some time ago, for a step.

        Before the first step it is for what is done meanwhile, and after the last one for each thing.
        """
        before = self._record.doing
        self._put(record)
        progress, evaluation, now = record.progress, record.evaluation, time.monotonic()
        if record.doing is not None and progress is not None:
            if record.doing != before:
                self.say(record.doing)
            return
        if record.doing is not None and now - self._line_at >= SECONDS_BETWEEN_LINES:
            self._line_at = now
            self.say(record.doing)
        if progress is None or (
            progress.epochs == self._epochs and now - self._line_at < SECONDS_BETWEEN_LINES
        ):
            return
        self._epochs, self._line_at = progress.epochs, now
        steps = record.plan.total_steps if record.plan else "?"
        words = [f"epoch {progress.epochs}", f"step {progress.step}/{steps}"]
        if progress.train_loss is not None:
            words.append(f"loss {progress.train_loss:.4f}")
        if evaluation is not None:
            words.append(f"validation loss {evaluation.loss:.4f}")
            if evaluation.perplexity is not None:
                words.append(f"perplexity {evaluation.perplexity:.4g}")
            words += [f"{name} {value:.4g}" for name, value in evaluation.metrics.items()]
        self.say(", ".join(words))

    def finished(self, record: ProgressRecord) -> None:
        """The run has its result."""
        self._put(record.model_copy(update={"finished": True}))
        model = best(record.checkpoints)
        if record.pushed is not None:
            self.say(f"pushed to {record.pushed.url}")
        self.say(f"finished; the model is {model.path}" if model else "finished")

    def stopped(self, ended: Ended) -> None:
        """The run was stopped, which is no failure of its own."""
        progress = ended.record.progress if ended.record else None
        if progress is None:
            self.say("stopped before a step was trained")
        else:
            if ended.saved:
                self._put(self._record.model_copy(update={"doing": None, "interrupted": True}))
            if ended.trained:
                self.say("training has finished; stopped before the model was pushed")
                return
            self.say(
                f"stopped after step {progress.step}; {'a snapshot is saved' if ended.saved else NOT_SAVED}"
            )

    def failed(self, failure: Failure, *, interrupted: bool = False) -> None:
        """The attempt has failed; or it was `interrupted`, and what it had trained is saved."""
        self._put(self._record.model_copy(update={"failure": failure, "interrupted": interrupted}))
        self.say(f"failed: {failure.failure_class}: {failure.message}")

    def _put(self, record: ProgressRecord) -> None:
        own = {"attempt": self._record.attempt, "preparing": self._record.preparing}
        self._record = record.model_copy(update=own)
        self._writer.put(self._record)


def _train(
    assignment: Assignment, manifest: Manifest, namespace: str, workers: Workers, reports: AttemptReports
) -> int:
    run = run_of(assignment, manifest, namespace)
    result = run.result()
    if result is not None:
        reports.say(f"{run.path}: this run has already finished")
        ended = finished_before(manifest.spec, run, result, reports)
    else:
        ended = attempt(
            manifest,
            manifest.spec,
            run,
            workers,
            reports,
            resources=resources_of(assignment, manifest),
        )
    stopped = ended.outcome is Outcome.STOPPED
    if ended.failure is not None:
        reports.failed(ended.failure, interrupted=stopped and ended.saved)
        return STOPPED if stopped else FAILED
    if stopped:
        reports.stopped(ended)
        return STOPPED
    reports.finished(ended.record or ProgressRecord(checkpoints=run.checkpoints()))
    return FINISHED


def resources_of(assignment: Assignment, manifest: Manifest) -> Resources:
    """What the workers have, as far as the head knows."""
    if assignment.device_memory is None or not assignment.on_gpu:
        return Resources(on_gpu=assignment.on_gpu)
    name = named(worker_device(manifest.spec.worker_resources or {}).type)
    return Resources(on_gpu=True, device=Device(name, assignment.device_memory))


def run_of(assignment: Assignment, manifest: Manifest, namespace: str) -> RunDirectory:
    """The run directory of the job."""
    directory = run_directory_name(namespace, manifest.metadata.name, assignment.uid)
    return RunDirectory(open_storage(assignment.storage).child(directory))


def _workers(assignment: Assignment, manifest: Manifest) -> Workers:
    """The workers of the Ray cluster that this node is the head of."""
    set_defaults(RAY)
    from finetune_trainer.workers.ray_train import RayWorkers

    return RayWorkers(
        connect=_ray,
        num_devices=manifest.spec.num_devices,
        on_gpu=assignment.on_gpu,
        resources=assignment.worker_resources,
        threads=assignment.worker_threads,
    )


@contextmanager
def _ray() -> Iterator[None]:
    import ray

    ray.init(address="auto", runtime_env={"env_vars": RAY}, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def _stop_at_once(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(STOPPED)


if __name__ == "__main__":
    sys.exit(main())
