"""Runs the benchmarks of this machine one after the other, or those that are named: `make bench`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

PARTS = {
    "start": ["bench.start", "--rounds", "3"],
    "trainer": ["bench.trainer", "--rounds", "1"],
    "threads": ["bench.threads", "--rounds", "1"],
    "packing": ["bench.packing", "--rounds", "1"],
    "overhead": ["bench.overhead", "--steps", "20", "--epochs", "3"],
    "data": ["bench.data"],
    "jobs": ["bench.many_jobs"],
    "kubeflow": ["bench.beside_kubeflow"],
}
"""By name: the module, and arguments with which all of them take more than an hour on 2 cores."""
SMALL = {"start": ["--models", "toy", "--rounds", "1"]}
"""What stands for `--small` where a benchmark has none."""


def main() -> None:
    """Runs them. Raises SystemExit when one fails, after all others have run."""
    parser = argparse.ArgumentParser(prog="bench", description="Runs the benchmarks of this machine.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--small", action="store_true", help="as little as shows that they work")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - PARTS.keys()
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: the parts are {', '.join(PARTS)}")
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(root / "examples")])}
    failed = []
    for part in arguments.parts or PARTS:
        command = [sys.executable, "-m", *PARTS[part]]
        if arguments.small:
            command += SMALL.get(part, ["--small"])
        print(f"\n## {part}\n", flush=True)
        began = time.monotonic()
        ended = subprocess.run(command, cwd=root, env=environment, check=False).returncode
        print(f"\n{part}: {time.monotonic() - began:.0f} s", flush=True)
        failed += [part] * (ended != 0)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
