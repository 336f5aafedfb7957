"""Commands that are waited for, with an end."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from devcluster.failure import ClusterError


def run(
    command: Sequence[str | Path],
    *,
    seconds: float = 60,
    stdin: str | None = None,
    shown: str | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> str:
    """What a command writes to standard output; where nothing else is given, as this process would run it.

    Raises ClusterError, which calls it `shown`, when it is not installed, takes longer than `seconds`, or
    fails.
    """
    words = shown or " ".join(map(str, command))
    try:
        ended = subprocess.run(
            command,
            input=stdin or "",
            env=environment,
            cwd=directory,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{words} took longer than {seconds:.0f} s") from error
    if ended.returncode:
        raise ClusterError(f"{words}: {ended.stderr.strip()[-2000:]}")
    return ended.stdout
