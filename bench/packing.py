"""How fast rows train end to end, packed into sequences and not.

    PYTHONPATH=.:examples python -m bench.packing [--rounds 3] [--steps 60] [--small] [--json FILE]

Run it from the project's folder, on a machine that does nothing else. In each round new processes of
`finetune run` train a LoRA on a small Llama on the same rows of mixed length, one after the other: eight rows
in a step without padding, and about as many tokens in a step as four sequences that `packing: true` fills
with rows. The speed is that of the steps after the first ones. A table shows the medians, and which part of
the sequences rows fill.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from bench.small_llama import BATCH_SIZE, Fields, write_job
from bench.threads import environment_with, train

WAYS: dict[str, Fields] = {
    "padding-free": {},
    "packed": {"packing": True, "train_batch_size_per_device": BATCH_SIZE // 2},
}


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description="Compares packed rows with rows that are not.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--small", action="store_true", help="one round of a few steps, to try it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures there")
    arguments = parser.parse_args()
    rounds, steps = (1, 20) if arguments.small else (arguments.rounds, arguments.steps)
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as scratch:
        jobs = {way: write_job(Path(scratch, way), fields, steps=steps) for way, fields in WAYS.items()}
        fill = fill_of(jobs["packed"])
        for round_ in range(1, rounds + 1):
            for way in sorted(WAYS, reverse=round_ % 2 == 0):
                speed, _ = train(jobs[way], Path(scratch, f"{way}-{round_}"), {})
                speeds[way].append(speed)
                print(f"round {round_}, {way}: {speed:.0f} tokens/s", flush=True)
    medians = [median(speeds[way]) for way in ("padding-free", "packed")]
    print(f"\nTokens a second on {len(os.sched_getaffinity(0))} processors, median of {rounds} rounds\n")
    print(
        "| padding-free | packed | packed / padding-free | sequences are full by |",
        "|---|---|---|---|",
        sep="\n",
    )
    print(f"| {medians[0]:.0f} | {medians[1]:.0f} | {medians[1] / medians[0]:.2f} | {fill:.1%} |")
    if arguments.json:
        document = {"tokens per second": speeds, "fill": fill}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def fill_of(job: Path) -> float:
    """Which part of a job's sequences rows fill, as its plan says."""
    command = [str(Path(sys.executable).with_name("finetune")), "plan", str(job), "-o", "json"]
    planned = subprocess.run(command, env=environment_with({}), capture_output=True, text=True, check=True)
    return float(json.loads(planned.stdout)["plan"]["fill"])


if __name__ == "__main__":
    main()
