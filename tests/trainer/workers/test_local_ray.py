"""Ray on this machine, for the workers of one run."""

from __future__ import annotations

import psutil

from finetune_trainer.workers.local_ray import local_ray

SOON = 5
"""Seconds; what misses Ray's own processes tries to say so for a minute."""
OBSERVERS = ("log_monitor.py", "monitor.py", "dashboard.py")
"""Processes that tell people of Ray, or ask for machines."""


def test_few_processes_of_ray_run_and_none_outlives_it() -> None:
    before = psutil.Process().children(recursive=True)
    with local_ray(cpus=1, gpus=0):
        started = [each for each in psutil.Process().children(recursive=True) if each not in before]
        commands = [" ".join(each.cmdline()) for each in started]
    assert len(started) > 3
    _, left = psutil.wait_procs(started, timeout=SOON)
    assert left == []
    assert any("raylet" in command for command in commands)
    assert not [each for each in OBSERVERS if any(each in command for command in commands)]
