"""Ray on this machine, for the workers of this process alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from finetune_trainer.stop_signals import without_sigterm
from finetune_trainer.workers.environment import RAY, set_defaults, short_ray_directory

OBJECT_STORE_BYTES = 512 * 2**20
"""Ray's shared memory, through which workers get the rows: taken as it fills, and more rows than that go to
disk."""


@contextmanager
def local_ray(*, cpus: int, gpus: int) -> Iterator[None]:
    """Ray runs inside the `with` block: no dashboard, no messages, and no process of it is left behind."""
    set_defaults(RAY)
    # Nobody takes a laptop away; it would be one more process.
    set_defaults({"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"})
    import ray
    from ray.job_config import JobConfig

    # The workers are to save a snapshot when this process is told to stop.
    with without_sigterm():
        ray.init(
            address="local",
            # Else the working directory is on the workers' import path, and any peft.py in it is taken for
            # peft.
            job_config=JobConfig(_client_job=True),
            _temp_dir=short_ray_directory(os.environ),
            num_cpus=cpus,
            num_gpus=gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    try:
        yield
    finally:
        _end_at_once()
        ray.shutdown()


def _end_at_once() -> None:
    """Has Ray's processes killed, which hear no SIGTERM: Ray would wait a second for each of them first."""
    import psutil
    import ray

    # Ray has no public way to say so.
    node = getattr(ray._private.worker, "_global_node", None)
    if node is None:
        return
    end = node.kill_all_processes

    def kill(**_: object) -> None:
        own = [psutil.Process(process.pid) for _, process in node.live_processes()]
        below = [each for process in own for each in process.children(recursive=True)]
        end(check_alive=False, allow_graceful=False)
        # They would miss those first, and try to say so for a minute.
        for process in below:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    node.kill_all_processes = kill
