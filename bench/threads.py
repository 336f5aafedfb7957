"""How fast a run trains by how its threads wait for each other, on a free machine and beside a busy process.

    PYTHONPATH=.:examples python -m bench.threads [--rounds 3] [--steps 60] [--small] [--json FILE]

Run it from the project's folder, on a machine that does nothing else. In each round new processes of
`finetune run` train the same LoRA on a small Llama, one after the other, each on all processors:

    spinning    GOMP_SPINCOUNT=300000, which is what OpenMP does by default
    asleep      OMP_WAIT_POLICY=PASSIVE
    chosen      neither is set, so that the trainer chooses

first on the free machine, then beside a process that keeps one processor busy. The speed is that of the steps
after the first ones, by the times in `metrics.jsonl`. A table shows the median of the rounds, and what
`chosen` is of the other two. The losses of all runs must be the same to the digit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from statistics import median

from bench.small_llama import step_lines, write_job

WAYS: dict[str, dict[str, str]] = {
    "spinning": {"GOMP_SPINCOUNT": "300000"},
    "asleep": {"OMP_WAIT_POLICY": "PASSIVE"},
    "chosen": {},
}
LOADS = ("free machine", "beside one busy process")
FIRST_STEPS = 5
"""Not measured: memory is taken for the first time."""

Speeds = dict[str, dict[str, list[float]]]
"""Tokens a second, by load, way and round."""


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description="Compares how threads wait for each other.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--small", action="store_true", help="one round of a few steps, to try it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures there")
    arguments = parser.parse_args()
    rounds, steps = (1, 15) if arguments.small else (arguments.rounds, arguments.steps)
    speeds: Speeds = {load: {way: [] for way in WAYS} for load in LOADS}
    losses: list[float] | None = None
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as scratch:
        job = write_job(Path(scratch), {}, steps=steps)
        for round_ in range(1, rounds + 1):
            for load in LOADS:
                with busy(load):
                    for way in sorted(WAYS, reverse=round_ % 2 == 0):
                        storage = Path(scratch, f"{way}-{round_}-{LOADS.index(load)}")
                        speed, seen = train(job, storage, WAYS[way])
                        if seen != (losses := losses or seen):
                            raise SystemExit(f"{way} does not train the same: {seen} instead of {losses}")
                        speeds[load][way].append(speed)
                        print(f"round {round_}, {load}, {way}: {speed:.0f} tokens/s", flush=True)
    print(f"\nTokens a second on {len(os.sched_getaffinity(0))} processors, median of {rounds} rounds\n")
    print(table(speeds))
    if arguments.json:
        arguments.json.write_text(json.dumps(speeds, indent=2) + "\n", encoding="utf-8")


@contextmanager
def busy(load: str) -> Iterator[None]:
    """The load, inside the `with` block."""
    if load == LOADS[0]:
        yield
        return
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def train(job: Path, storage: Path, settings: Mapping[str, str]) -> tuple[float, list[float]]:
    """Trains the job in a new process; its tokens a second, and the loss of each step."""
    finetune = str(Path(sys.executable).with_name("finetune"))
    command = [finetune, "run", str(job), "--storage", str(storage)]
    ran = subprocess.run(command, env=environment_with(settings), capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"the run ended with {ran.returncode}\n{ran.stdout}\n{ran.stderr}")
    [metrics] = storage.glob("*/*/metrics.jsonl")
    steps = step_lines(metrics)
    began, ended = (datetime.fromisoformat(steps[at]["time"]) for at in (FIRST_STEPS - 1, -1))
    tokens = sum(int(line["tokens"]) for line in steps[FIRST_STEPS:])
    return tokens / (ended - began).total_seconds(), [float(line["loss"]) for line in steps]


def environment_with(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, in which these settings alone say how threads wait."""
    unset = {name for way in WAYS.values() for name in way}
    return {name: value for name, value in os.environ.items() if name not in unset} | dict(settings)


def table(speeds: Speeds) -> str:
    """A Markdown table with a row for each load."""
    lines = ["| | spinning | asleep | chosen | of spinning | of asleep |", "|---|---|---|---|---|---|"]
    for load, measured in speeds.items():
        medians = {way: median(values) for way, values in measured.items()}
        ratios = [medians["chosen"] / medians[way] for way in ("spinning", "asleep")]
        figures = [f"{medians[way]:.0f}" for way in WAYS] + [f"{ratio:.2f}" for ratio in ratios]
        lines.append(f"| {load} | {' | '.join(figures)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
