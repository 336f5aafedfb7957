"""What each of Ray Train's workers runs.

Ray's controller imports this module too: nothing heavy is imported before training.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import ray
import ray.train

from finetune_trainer.training.job import Start, TrainingJob
from finetune_trainer.workers.environment import without_bitsandbytes
from finetune_trainer.workers.progress_board import ProgressBoard
from finetune_trainer.workers.waiting import waiting

JOB_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class WorkerConfig:
    """What each worker is given when it starts; the job itself comes when it is prepared."""

    start: Start
    board: ProgressBoard
    threads: int
    """Of its arithmetic."""


def train_worker(loop_config: dict[str, WorkerConfig]) -> None:
    """Loads the model while the driver prepares the job, then trains."""
    config = loop_config["worker"]
    without_bitsandbytes(config.start.spec)
    import ray.train.torch
    import torch
    from transformers.utils.logging import disable_progress_bar

    from finetune_trainer.failures import failure_of
    from finetune_trainer.training.job import Worker
    from finetune_trainer.training.loop import train
    from finetune_trainer.training.setup import load

    torch.set_num_threads(config.threads)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    reporter = config.board.reporter()
    context = ray.train.get_context()
    worker = Worker(
        rank=context.get_world_rank(),
        num_devices=context.get_world_size(),
        device=ray.train.torch.get_device(),
        report=reporter.report,
        stop_requested=reporter.stop_requested,
    )
    try:
        with waiting(config.threads):
            loaded = load(config.start, worker.device)
            outcome = train(_job(config.board), worker, loaded)
    except Exception as error:
        config.board.put_failure(failure_of(error))
        raise
    if worker.rank == 0:
        # As plain text: its class would make the board import what takes it seconds.
        config.board.put_outcome(str(outcome))


def _job(board: ProgressBoard) -> TrainingJob:
    """The job, once the driver has prepared it; the driver ends the workers if it cannot."""
    while True:
        job = board.job()
        if job is not None:
            return ray.get(job)
        time.sleep(JOB_POLL_SECONDS)
