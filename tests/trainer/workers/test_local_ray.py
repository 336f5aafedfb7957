"""Ray on this machine, for the workers of one run."""

from __future__ import annotations

import psutil

from finetune_trainer.workers.local_ray import local_ray

SOON = 5
"""Seconds; what misses Ray's own processes tries to say so for a minute."""


def test_no_process_of_ray_outlives_it() -> None:
    before = psutil.Process().children(recursive=True)
    with local_ray(cpus=1, gpus=0):
        started = [each for each in psutil.Process().children(recursive=True) if each not in before]
    assert len(started) > 3
    _, left = psutil.wait_procs(started, timeout=SOON)
    assert left == []
