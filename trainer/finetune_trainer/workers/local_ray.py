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


ON_ONE_MACHINE = {
    # Nobody takes a laptop away; it would be one more process.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Nobody reads Ray's metrics, or asks which of its tasks ran when.
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_debug_dump_period_milliseconds": "0",
    # What Ray looks at ten times a second changes when workers start and end.
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_raylet_check_gc_period_milliseconds": "1000",
    "RAY_local_fs_monitor_interval_ms": "1000",
    "RAY_kill_idle_workers_interval_ms": "1000",
    # A process that waits for work wakes up 100 times a second.
    "RAY_num_workers_soft_limit": "0",
    "RAY_memory_monitor_refresh_ms": "1000",
}
"""Settings on top of RAY. What Ray does by default is for clusters that change, and that people watch. Here
its processes take processors from training, where all threads of a step wait for the one that has none.
"""
_OBSERVERS = ("start_log_monitor", "start_monitor", "start_api_server")


@contextmanager
def local_ray(*, cpus: int, gpus: int) -> Iterator[None]:
    """Ray runs inside the `with` block: no dashboard, no messages, and no process of it is left behind."""
    set_defaults(RAY)
    set_defaults(ON_ONE_MACHINE)
    import ray
    from ray.job_config import JobConfig

    # The workers are to save a snapshot when this process is told to stop.
    with without_sigterm(), _without_observers():
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


@contextmanager
def _without_observers() -> Iterator[None]:
    """Inside the `with` block Ray starts no log monitor, autoscaler or API server.

    Messages go nowhere here, there is one machine, and no dashboard. Ray has no public way to leave them out.
    """
    from ray._private.node import Node

    def start_nothing(*_: object, **__: object) -> None:
        pass

    starters = {name: getattr(Node, name) for name in _OBSERVERS if hasattr(Node, name)}
    for name in starters:
        setattr(Node, name, start_nothing)
    try:
        yield
    finally:
        for name, start in starters.items():
            setattr(Node, name, start)


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
