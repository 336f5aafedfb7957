"""What a step costs besides training: checkpoints, progress and metrics, and Ray.

    PYTHONPATH=.:examples python -m bench.overhead [--rounds 3] [--steps 50] [--epochs 5] [--small]

Run it from the project's folder, on a machine that does nothing else. In each round new processes train the
same small Llama for the same steps, one after the other, as adapters (LoRA) and with all parameters:

    bare           the loop alone: nothing is reported, nothing saved
    reporting      metrics, progress and records as in every run; one checkpoint, at the end
    ray            as `reporting`, in a worker of Ray Train
    checkpoints    as `reporting`, with a checkpoint after every second epoch

Of the first three two are compared step by step, each step as fast as in the fastest of all rounds: what
else a machine does makes steps slower now and then, and what is looked for makes each of them slower.
Processes that do the same differ by some percent all the same, so what a checkpoint costs is measured within
one: an epoch at whose beginning one is taken, and in which it is written, is compared with those before and
after it. A table shows milliseconds a step, and what is lost. The losses of all runs must be the same to the
digit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING

from bench.small_llama import Fields, step_lines, write_job

if TYPE_CHECKING:
    from finetune_api.status import ProgressRecord
    from finetune_trainer.plan.prepare import Prepared

WAYS = ("bare", "reporting", "ray", "checkpoints")
MODELS: dict[str, Fields] = {"LoRA": {}, "all parameters": {"lora_config": None}}
FIRST_STEPS = 5
"""Not measured: memory is taken for the first time."""
LOST = {"progress and metrics": ("reporting", "bare"), "Ray": ("ray", "reporting")}
"""What costs time, by pairs of ways: with it, and without."""
EVERY = 2
"""Epochs between checkpoints, so that those with one are beside others without."""

Figures = dict[str, dict[str, list[list[float]]]]
"""Seconds by model, way and round: of each measured step, or by epoch from the second one on."""


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description="Measures what a step costs besides training.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=5, help="three at least")
    parser.add_argument("--small", action="store_true", help="one round of a few steps, to try it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures there")
    parser.add_argument("--child", nargs=3, metavar=("WAY", "JOB", "STORAGE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        way, job, storage = arguments.child
        train(way, Path(job), Path(storage))
        return
    rounds, steps, epochs = (
        (1, 8, 3) if arguments.small else (arguments.rounds, arguments.steps, arguments.epochs)
    )
    figures: Figures = {}
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as scratch:
        for model in MODELS:
            figures[model] = measure(model, Path(scratch, model.replace(" ", "-")), rounds, steps, epochs)
    print(f"\n{rounds} rounds of {epochs} epochs of {steps} steps, milliseconds a step\n")
    print(table(figures, steps, epochs))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure(
    model: str, directory: Path, rounds: int, steps: int, epochs: int
) -> dict[str, list[list[float]]]:
    """The seconds of each way, by round. Raises SystemExit when a process fails, or trains something else."""
    directory.mkdir()
    fields: Fields = {**MODELS[model], "num_checkpoints_to_keep": 2}
    jobs = {
        way: write_job(
            directory / way,
            fields | {"checkpoint_every_n_epochs": EVERY if way == "checkpoints" else epochs},
            steps=steps,
            epochs=epochs,
        )
        for way in WAYS
    }
    seconds: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    losses: list[float] | None = None
    for round_ in range(1, rounds + 1):
        for way in sorted(WAYS, reverse=round_ % 2 == 0):
            storage = directory / f"{way}-{round_}"
            command = [sys.executable, "-m", "bench.overhead", "--child", way, str(jobs[way]), str(storage)]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            if ran.returncode:
                raise SystemExit(f"{way} ended with {ran.returncode}\n{ran.stdout}\n{ran.stderr}")
            lines = lines_of(storage)
            if way == "checkpoints":
                ended = [datetime.fromisoformat(line["time"]) for line in lines[steps - 1 :: steps]]
                seconds[way].append([(end - begin).total_seconds() for begin, end in pairwise(ended)])
            else:
                seconds[way].append(json.loads(ran.stdout.splitlines()[-1]))
            seen = [float(line["loss"]) for line in lines]
            if seen and seen != (losses := losses or seen):
                raise SystemExit(f"{way} does not train the same: {seen} instead of {losses}")
            print(f"round {round_}, {model}, {way}: {sum(seconds[way][-1]):.2f} s", flush=True)
    return seconds


def train(way: str, job: Path, storage: Path) -> None:
    """Trains a job in this way, and prints the seconds of each step after the first ones."""
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

            return super().train(job, report, timed)

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
        requests += [datetime.fromisoformat(line["time"]).timestamp() for line in lines_of(storage)]
    print([later - earlier for earlier, later in pairwise(requests[FIRST_STEPS - 1 :])])


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


def table(figures: Figures, steps: int, epochs: int) -> str:
    """A Markdown table with a row for each model and what costs time."""
    lines = ["| | with | without | lost |", "|---|---|---|---|"]
    measured = steps * epochs - FIRST_STEPS
    for model, ways in figures.items():
        pairs = [beside for round_ in ways["checkpoints"] for beside in checkpoints_beside(round_)]
        lines.append(row(f"{model}: a checkpoint every epoch", pairs, steps))
        for what, (way, other) in LOST.items():
            lines.append(row(f"{model}: {what}", [(fastest(ways[way]), fastest(ways[other]))], measured))
    return "\n".join(lines)


def checkpoints_beside(epochs: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Of the epochs from the second one on, each in which a checkpoint is written, and the mean beside it."""
    for at in range(EVERY - 1, len(epochs), EVERY):
        yield epochs[at], mean(epochs[beside] for beside in (at - 1, at + 1) if beside < len(epochs))


def fastest(rounds: Sequence[Sequence[float]]) -> float:
    """The seconds of all steps, each as fast as in the fastest of the rounds."""
    steps: Iterator[tuple[float, ...]] = zip(*rounds, strict=True)
    return sum(min(step) for step in steps)


def row(name: str, pairs: Sequence[tuple[float, float]], steps: int) -> str:
    """What is lost by pairs of seconds with and without something, each for so many steps."""
    with_, without = (1000 * median(each) / steps for each in zip(*pairs, strict=True))
    lost = median(100 * (pair[0] / pair[1] - 1) for pair in pairs)
    return f"| {name} | {with_:.2f} | {without:.2f} | {lost:.1f} % |"


if __name__ == "__main__":
    main()
