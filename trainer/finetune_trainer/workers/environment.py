"""Settings of the libraries that must be in the environment before they are imported or Ray is started."""

from __future__ import annotations

import os

ARITHMETIC = {
    # Threads that spin while they wait slow training down tenfold when anything else needs the processor.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""For every process that trains."""

RAY = {
    **ARITHMETIC,
    "RAY_TRAIN_V2_ENABLED": "1",
    # Workers stay in the directory they were started in: paths in a spec are relative to it.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray is nice by 15, which starves training on a machine that does anything else.
    "RAY_worker_niceness": "0",
}
"""For Ray, on one machine and on a cluster."""


def set_defaults(settings: dict[str, str]) -> None:
    """Puts settings into the environment, where a person has not set them."""
    for name, value in settings.items():
        os.environ.setdefault(name, value)
