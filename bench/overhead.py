"""What a step costs besides training: checkpoints, progress and metrics, and Ray.

    PYTHONPATH=.:examples python -m bench.overhead [--rounds 3] [--steps 50] [--epochs 4] [--small]

Run it from the project's folder, on a machine that does nothing else. In each round new processes train the
same small Llama for the same steps, one after the other, as adapters (LoRA) and with all parameters:

    bare           the loop alone: nothing is reported, nothing saved
    reporting      metrics, progress and records as in every run; one checkpoint, at the end
    checkpoints    the same with a checkpoint after every epoch
    ray            as `reporting`, in a worker of Ray Train

The time is from one of the first steps to the last one; for `checkpoints`, and the `reporting` that it is
compared with, to the end of training, when all is saved. A table shows the median of the rounds in
milliseconds a step, and which share of it is lost. The losses of all runs must be the same to the digit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bench.small_llama import Fields, step_lines, write_job

if TYPE_CHECKING:
    from finetune_api.status import ProgressRecord
    from finetune_trainer.plan.prepare import Prepared

WAYS = ("bare", "reporting", "checkpoints", "ray")
MODELS: dict[str, Fields] = {"LoRA": {}, "all parameters": {"lora_config": None}}
FIRST_STEPS = 5
"""Not measured: memory is taken for the first time."""
LOST = {
    "a checkpoint every epoch": ("checkpoints", "reporting", "to_the_end"),
    "progress and metrics": ("reporting", "bare", "to_the_last_step"),
    "Ray": ("ray", "reporting", "to_the_last_step"),
}
"""What costs time: the way that has it, the way that has not, and the measurement."""

Figures = dict[str, dict[str, list[dict[str, float]]]]
"""Seconds by measurement, by model, way and round."""


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description="Measures what a step costs besides training.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--small", action="store_true", help="one round of a few steps, to try it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures there")
    parser.add_argument("--child", nargs=3, metavar=("WAY", "JOB", "STORAGE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        way, job, storage = arguments.child
        train(way, Path(job), Path(storage))
        return
    rounds, steps, epochs = (
        (1, 8, 2) if arguments.small else (arguments.rounds, arguments.steps, arguments.epochs)
    )
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as scratch:
        for model in MODELS:
            figures[model] = measure(model, Path(scratch, model.replace(" ", "-")), rounds, steps, epochs)
    measured = steps * epochs - FIRST_STEPS
    print(f"\n{rounds} rounds of {epochs} epochs of {steps} steps, milliseconds a step\n")
    print(table(figures, measured))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(
    model: str, directory: Path, rounds: int, steps: int, epochs: int
) -> dict[str, list[dict[str, float]]]:
    """The seconds of each way, by round. Raises SystemExit when a process fails, or trains something else."""
    directory.mkdir()
    fields: Fields = {**MODELS[model], "num_checkpoints_to_keep": 2}
    jobs = {
        way: write_job(
            directory / way,
            fields | {"checkpoint_every_n_epochs": 1 if way == "checkpoints" else epochs},
            steps=steps,
            epochs=epochs,
        )
        for way in WAYS
    }
    seconds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    losses: list[float] | None = None
    for round_ in range(1, rounds + 1):
        for way in sorted(WAYS, reverse=round_ % 2 == 0):
            storage = directory / f"{way}-{round_}"
            command = [sys.executable, "-m", "bench.overhead", "--child", way, str(jobs[way]), str(storage)]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode:
                raise SystemExit(f"{way} ended with {ran.returncode}\n{ran.stdout}\n{ran.stderr}")
            seconds[way].append(json.loads(ran.stdout.splitlines()[-1]))
            seen = [float(line["loss"]) for line in lines_of(storage)]
            if seen and seen != (losses := losses or seen):
                raise SystemExit(f"{way} does not train the same: {seen} instead of {losses}")
            shown = ", ".join(
                f"{what.replace('_', ' ')} {value:.2f} s" for what, value in seconds[way][-1].items()
            )
            print(f"round {round_}, {model}, {way}: {shown}", flush=True)
    return seconds


def train(way: str, job: Path, storage: Path) -> None:
    """Trains a job in this way, and prints the seconds that it took."""
    import torch

    from finetune_api.manifest import read_manifest
    from finetune_trainer.attempt import attempt
    from finetune_trainer.plan.machine import this_machine
    from finetune_trainer.plan.sharding import Resources
    from finetune_trainer.storage.run_directory import RunDirectory
    from finetune_trainer.training import loop
    from finetune_trainer.training.job import TrainingJob
    from finetune_trainer.workers.in_process import InProcess
    from finetune_trainer.workers.local_ray import local_ray
    from finetune_trainer.workers.ray_train import RayWorkers
    from finetune_trainer.workers.workers import Ended, Workers

    requests: list[float] = []
    ended_at: list[float] = []

    class Timed(InProcess):
        def train(
            self,
            job: TrainingJob,
            report: Callable[[ProgressRecord], None],
            stop_requested: Callable[[], bool],
        ) -> Ended:
            def timed() -> bool:
                requests.append(time.monotonic())
                return stop_requested()

            ended = super().train(job, report, timed)
            ended_at.append(time.monotonic())
            return ended

    machine = this_machine()
    workers: Workers = Timed(torch.device("cpu"), machine.cpus)
    if way == "ray":
        workers = RayWorkers(
            connect=partial(local_ray, cpus=machine.cpus, gpus=machine.gpus),
            num_devices=1,
            on_gpu=False,
            resources={"CPU": 1},
            threads=machine.cpus,
            on_this_machine=True,
        )
    if way == "bare":
        loop._reporter = silent  # type: ignore[assignment]
    manifest = read_manifest(job)
    run = RunDirectory.open(str(storage))
    ended = attempt(manifest, manifest.spec, run, workers, Nobody(), resources=Resources(on_gpu=False))
    if ended.failure is not None:
        raise SystemExit(ended.failure.message)
    if way == "ray":
        times = [datetime.fromisoformat(line["time"]) for line in lines_of(storage)]
        figures = {"to_the_last_step": (times[-1] - times[FIRST_STEPS - 1]).total_seconds()}
    else:
        began = requests[FIRST_STEPS - 1]
        figures = {"to_the_last_step": requests[-1] - began, "to_the_end": ended_at[0] - began}
    print(json.dumps(figures))


@contextmanager
def silent(*_arguments: object) -> Iterator[object]:
    """The reporter of a run that reports and saves nothing."""
    from finetune_trainer.report.reporter import Reporter

    yield Reporter()


class Nobody:
    """Is told how an attempt goes, and does nothing."""

    def say(self, line: str) -> None:
        """Does nothing."""

    def prepared(self, prepared: Prepared) -> None:
        """Does nothing."""

    def progress(self, record: ProgressRecord) -> None:
        """Does nothing."""


def lines_of(storage: Path) -> list[dict[str, str]]:
    """The lines of steps of a run; none where nothing was reported."""
    metrics = storage / "metrics.jsonl"
    return step_lines(metrics) if metrics.exists() else []


def table(figures: Figures, steps: int) -> str:
    """A Markdown table with a row for each model and what costs time."""
    lines = ["| | with | without | lost |", "|---|---|---|---|"]
    for model, ways in figures.items():
        for what, (way, other, measurement) in LOST.items():
            with_, without = (median(each[measurement] for each in ways[name]) for name in (way, other))
            lost = 100 * (with_ - without) / without
            lines.append(
                f"| {model}: {what} | {1000 * with_ / steps:.2f} | {1000 * without / steps:.2f}"
                f" | {lost:.1f} % |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
