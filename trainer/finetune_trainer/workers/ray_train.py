"""Starts the workers with Ray Train and follows them: the one program that a laptop and a cluster's head both run."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError
from ray.train.v2.api.config import FailureConfig
from transformers.utils.logging import disable_progress_bar

from finetune_api.failure import FailureClass
from finetune_api.numbers import resolved_dtype
from finetune_api.status import Failure, ProgressRecord
from finetune_trainer.failures import failure_of, failure_of_run
from finetune_trainer.plan.prepare import Prepared
from finetune_trainer.storage.run_directory import RunDirectory
from finetune_trainer.training.loop import Outcome, TrainingJob, Worker, train
from finetune_trainer.workers.progress_board import Board, BoardReporter, Notice, open_board, read_board

POLL_SECONDS = 0.2
DRAIN_POLL_SECONDS = 1.0
SECONDS_TO_SAVE = 120
"""For a snapshot, on the nodes that stay, after another is gone."""

QUIET_RAY = {
    "RAY_TRAIN_V2_ENABLED": "1",
    # Workers stay in the directory they were started in: paths in a spec are relative to it.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Threads that spin while they wait slow training down tenfold when anything else needs the processor.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Ray is nice by 15, which starves training on a machine that does anything else.
    "RAY_worker_niceness": "0",
}
"""Ray's settings for both places; they must be in the environment before Ray starts."""

TAKEN_AWAY = "a node is being taken away; a snapshot was saved, and another attempt goes on from it"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerConfig:
    """What each worker is given."""

    job: ray.ObjectRef[TrainingJob]
    board: Board
    threads: int
    """Threads of its arithmetic."""


def job_to_train(name: str, prepared: Prepared, run: RunDirectory, *, on_gpu: bool) -> TrainingJob:
    """The job as all workers get it; it goes on from what is newest in the run directory."""
    return TrainingJob(
        name=name,
        spec=prepared.spec,
        numbers=prepared.numbers,
        plan=prepared.plan,
        train=prepared.train,
        validation=prepared.validation,
        fingerprint=prepared.fingerprint,
        run_directory=run.path,
        resume_from=run.newest(),
        dtype=resolved_dtype(prepared.spec, on_gpu=on_gpu),
    )


def follow(
    job: TrainingJob,
    *,
    on_gpu: bool,
    resources: dict[str, float],
    threads: int,
    report: Callable[[ProgressRecord], None],
    stop: threading.Event,
) -> tuple[Notice, Failure | None]:
    """Trains `job` on `job.numbers.num_devices` workers and returns the last word on it, and why it failed if it did.

    Ray must be running. `report` is called in this thread with each new record; after `stop` is set the run
    ends at its next step. So it does when a node is about to go, and that is a failure (NodeLost). `threads`
    are those of each worker's arithmetic, `resources` what Ray must give each.
    """
    board = open_board()
    ended: list[BaseException | None] = []

    def fit() -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="finetune-ray-") as scratch:
                ray.train.torch.TorchTrainer(
                    train_worker,
                    train_loop_config={"worker": WorkerConfig(ray.put(job), board, threads)},
                    scaling_config=ray.train.ScalingConfig(
                        num_workers=job.numbers.num_devices, use_gpu=on_gpu, resources_per_worker=resources
                    ),
                    run_config=ray.train.RunConfig(
                        name="finetune",
                        storage_path=scratch,
                        # Ray Train would start again from where this attempt began.
                        failure_config=FailureConfig(
                            max_failures=0, max_preemption_failures=0, preemption_grace_s=SECONDS_TO_SAVE
                        ),
                    ),
                ).fit()
            ended.append(None)
        except BaseException as error:  # noqa: BLE001 - it crosses to the thread that follows, which names it
            ended.append(error)

    # Ray's own fit answers Ctrl-C by killing the workers; in a thread it leaves signals alone, and a snapshot
    # can be saved.
    fitting = threading.Thread(target=fit, name="ray-train", daemon=True)
    fitting.start()
    notice = Notice()
    drain = _Drain()
    asked = taken_away = False
    try:
        while fitting.is_alive():
            fitting.join(POLL_SECONDS)
            seen, notice = notice.version, read_board(board)
            if notice.version > seen and notice.record is not None:
                report(notice.record)
            if not asked and (stop.is_set() or drain.seen()):
                asked, taken_away = True, not stop.is_set()
                ray.get(board.stop.remote())
        notice = read_board(board)
    except RayError as lost:
        return notice, failure_of_run(lost)
    if taken_away and notice.outcome == Outcome.STOPPED:
        return notice, Failure(failure_class=FailureClass.NODE_LOST, message=TAKEN_AWAY)
    error = ended[0]
    if error is None:
        return notice, None
    failure = notice.failure or failure_of_run(error)
    if failure.failure_class is FailureClass.UNKNOWN:
        _log.error("%s", error)
    return notice, failure


class _Drain:
    """Whether a node of the cluster is about to go: its pod was told to end, and Ray lets it finish what it does for some seconds."""

    def __init__(self) -> None:
        self._looked_at = -DRAIN_POLL_SECONDS
        self._can_look = True

    def seen(self) -> bool:
        """Looks once a second."""
        now = time.monotonic()
        if not self._can_look or now - self._looked_at < DRAIN_POLL_SECONDS:
            return False
        self._looked_at = now
        try:
            # Ray has no public way that costs the workers nothing; its own libraries look here.
            return bool(ray._private.state.state.get_draining_nodes())
        except Exception as error:  # noqa: BLE001 - training goes on without the warning
            _log.warning("cannot see whether nodes are about to go: %s", error)
            self._can_look = False
            return False


def train_worker(loop_config: dict[str, WorkerConfig]) -> None:
    """What each Ray Train worker runs."""
    config = loop_config["worker"]
    torch.set_num_threads(config.threads)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    reporter = BoardReporter(config.board)
    context = ray.train.get_context()
    worker = Worker(
        rank=context.get_world_rank(),
        num_devices=context.get_world_size(),
        device=ray.train.torch.get_device(),
        report=reporter.report,
        stop_requested=reporter.stop_requested,
    )
    try:
        outcome: Outcome = train(ray.get(config.job), worker)
    except Exception as error:
        ray.get(config.board.put_failure.remote(failure_of(error)))
        raise
    if worker.rank == 0:
        ray.get(config.board.put_outcome.remote(outcome))


def quieten_ray() -> None:
    """Puts Ray's settings into the environment, where a person has not set them."""
    for name, value in QUIET_RAY.items():
        os.environ.setdefault(name, value)
