"""What libraries must find in this process or its environment before they are imported or Ray is started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from finetune_api.spec import FineTuneJobSpec

RAY = {
    "RAY_TRAIN_V2_ENABLED": "1",
    # Workers stay in the directory they were started in: paths in a spec are relative to it.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray is nice by 15, which starves training on a machine that does anything else.
    "RAY_worker_niceness": "0",
    # Ray Train's training is in a thread. There glibc gives large tensors back to the system and takes them
    # anew, step by step, unless all threads share one arena.
    "MALLOC_ARENA_MAX": "1",
}
"""For Ray, on one machine and on a cluster."""


def set_defaults(settings: dict[str, str]) -> None:
    """Puts settings into the environment, where a person has not set them."""
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def without_bitsandbytes(spec: FineTuneJobSpec) -> None:
    """Leaves bitsandbytes out unless the job needs it."""
    if spec.quantization is None:
        leave_out_bitsandbytes()


def leave_out_bitsandbytes() -> None:
    """Keeps peft from importing it, in this process and from now on.

    peft imports bitsandbytes wherever it is installed, which takes two seconds of a start; only a base model
    in 4 bits is computed with it.
    """
    # How Python notes that there is no such module; one that has been imported stays.
    sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


LONGEST_RAY_DIRECTORY = 39
"""The longest directory for temporary files, in bytes, below which Ray's sockets have paths of the 107 bytes
that Linux allows: Ray appends `/ray/session_<date and time>_<process>/sockets/plasma_store`."""
SHORT_DIRECTORIES = ("/tmp", "/var/tmp", "/dev/shm")


def _writable(directory: str) -> bool:
    return os.access(directory, os.W_OK | os.X_OK)


def short_ray_directory(
    environment: Mapping[str, str], writable: Callable[[str], bool] = _writable
) -> str | None:
    """Where Ray is to keep its sockets; None where its own choice is short enough, or none is shorter.

    Its own choice is RAY_TMPDIR, else TMPDIR, else `/tmp`.
    """
    chosen = environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or SHORT_DIRECTORIES[0]
    if len(os.fsencode(Path(chosen))) <= LONGEST_RAY_DIRECTORY:
        return None
    return next((f"{directory}/ray" for directory in SHORT_DIRECTORIES if writable(directory)), None)


def kills_for_memory(vmstat: Path = Path("/proc/vmstat")) -> int | None:
    """How many processes this machine's kernel has ended for want of memory; None where that is unknown."""
    try:
        counts = dict(line.split() for line in vmstat.read_text().splitlines())
        return int(counts["oom_kill"])
    except (OSError, KeyError, ValueError):
        return None
