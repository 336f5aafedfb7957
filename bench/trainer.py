"""How fast the trainer trains, beside TRL's SFTTrainer and transformers' Trainer.

    PYTHONPATH=.:examples python -m bench.trainer [--rounds 3] [--only NAME...] [--small] [--json FILE]

Run it from the project's folder, on a machine that does nothing else. In each round new processes train the
same model on the same rows in the same steps, one after the other, on all processors:

    ours            `finetune run`, as a person runs it
    TRL             SFTTrainer, which pads the rows of a micro-batch to the longest; threads spin as they do
    TRL, asleep     the same with OMP_WAIT_POLICY=PASSIVE, beside a busy process only
    transformers    Trainer, on the free machine only

first on the free machine, then beside a process that keeps one processor busy. The speed is that of the steps
after the first ones, in tokens that are not padding; the memory is the most that the process held at any
time. A table shows the medians, and ours as a part of the faster of TRL's. The losses of every step must
agree to 1e-4, else the benchmark fails.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from subprocess import Popen

from bench.small_llama import Fields, step_lines, write_job, write_rows
from bench.threads import LOADS, WAYS, busy, environment_with

from make_inputs import TRAIN_LARGE, make_data, make_model

FIRST_STEPS = 5
"""Not measured: memory is taken for the first time."""
TOLERANCE = 1e-4
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """A job."""

    steps: int
    fields: Fields = field(default_factory=dict)
    equal: bool = False
    """Whether all rows are as long as the context."""
    smollm2: bool = False
    """Whether it is SmolLM2-135M-Instruct on short conversations; else a small Llama."""


CASES = {
    "LoRA, mixed lengths": Case(30),
    "full, mixed lengths": Case(30, {"lora_config": None}),
    "LoRA, equal lengths": Case(20, equal=True),
    "full, equal lengths": Case(20, {"lora_config": None}, equal=True),
    "SmolLM2, LoRA, short rows": Case(30, smollm2=True),
}
TRAINERS: dict[str, tuple[tuple[str, str], ...]] = {
    LOADS[0]: (("ours", "chosen"), ("TRL", "chosen"), ("transformers", "chosen")),
    LOADS[1]: (("ours", "chosen"), ("TRL", "chosen"), ("TRL, asleep", "asleep")),
}
"""By load: what is measured, and how its threads wait."""


@dataclass(frozen=True)
class Figures:
    """Of one process."""

    speed: float
    """Tokens a second."""
    memory: int
    """The most that it held, in bytes."""
    losses: list[float]


Measured = dict[str, dict[str, list[Figures]]]
"""By load and trainer, of each round."""


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description="Compares the trainer with TRL and transformers.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="NAME", help=f"of {', '.join(CASES)}")
    parser.add_argument("--small", action="store_true", help="one round of a few steps, to try it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures there")
    parser.add_argument("--child", nargs=3, metavar=("TRAINER", "JOB", "OUTPUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        trainer, job, output = arguments.child
        train_by_others(trainer, Path(job), Path(output))
        return
    rounds = 1 if arguments.small else arguments.rounds
    document: dict[str, Fields] = {}
    rows: list[str] = []
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as scratch:
        for name in arguments.only or CASES:
            directory = Path(scratch, str(len(rows)))
            job = written(CASES[name], directory, FIRST_STEPS + 3 if arguments.small else CASES[name].steps)
            measured = measure(name, job, directory, rounds)
            rows += lines(name, measured)
            document[name] = {
                f"{load}: {trainer}": [each.speed for each in figures]
                for load, trainers in measured.items()
                for trainer, figures in trainers.items()
            }
    print(f"\n{len(os.sched_getaffinity(0))} processors, median of {rounds} rounds\n")
    print(
        "| | tokens/s: ours | TRL | transformers | ours/TRL | MiB: ours | TRL |",
        "|---|---|---|---|---|---|---|",
        sep="\n",
    )
    print("\n".join(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def written(case: Case, directory: Path, steps: int) -> Path:
    """The manifest of a case, with its inputs."""
    fields: Fields = dict(case.fields)
    if case.smollm2:
        rows = make_data() / TRAIN_LARGE
        directory.mkdir()
        train = directory / "short.jsonl"
        train.write_text("".join(rows.read_text(encoding="utf-8").splitlines(keepends=True)[: 4 * steps]))
        fields |= {
            "model_id": str(make_model()),
            "train_path": str(train),
            "train_batch_size_per_device": 4,
        }
    elif case.equal:
        directory.mkdir()
        train = write_rows(directory / "equal.jsonl", 8 * steps, characters=4000)
        fields |= {"train_path": str(train)}
    return write_job(directory, fields, steps=steps)


def measure(name: str, job: Path, directory: Path, rounds: int) -> Measured:
    """The figures of a case. Raises SystemExit when a process fails, or trains something else."""
    measured: Measured = {load: {} for load in LOADS}
    expected: list[float] | None = None
    for round_ in range(1, rounds + 1):
        for load, trainers in TRAINERS.items():
            with busy(load):
                for trainer, waiting in sorted(trainers, reverse=round_ % 2 == 0):
                    output = directory / f"{trainer}-{round_}-{LOADS.index(load)}"
                    figures = trained(trainer, job, output, WAYS[waiting])
                    check(trainer, figures.losses, expected := expected or figures.losses)
                    measured[load].setdefault(trainer, []).append(figures)
                    print(
                        f"round {round_}, {name}, {load}, {trainer}: {figures.speed:.0f} tokens/s,"
                        f" {figures.memory / MIB:.0f} MiB",
                        flush=True,
                    )
    return measured


def check(trainer: str, losses: list[float], expected: list[float]) -> None:
    """Raises SystemExit where the losses of two trainers are not the same."""
    apart = [abs(one - other) for one, other in zip(losses, expected, strict=True)]
    if max(apart) > TOLERANCE:
        step = apart.index(max(apart))
        raise SystemExit(f"{trainer}: loss {losses[step]} in step {step + 1} instead of {expected[step]}")


def trained(trainer: str, job: Path, output: Path, settings: Mapping[str, str]) -> Figures:
    """Trains a job in a new process."""
    if trainer == "ours":
        command = [str(Path(sys.executable).with_name("finetune")), "run", str(job), "--storage", str(output)]
    else:
        command = [sys.executable, "-m", "bench.trainer", "--child", trainer, str(job), str(output)]
    with tempfile.TemporaryFile("w+") as said:
        process = Popen(command, env=environment_with(settings), stdout=said, stderr=said)
        _, ended, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(ended)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{trainer} ended with {process.returncode}\n{said.read()}")
    times, tokens, losses = seen(output)
    speed = sum(tokens[FIRST_STEPS:]) / (times[-1] - times[FIRST_STEPS - 1])
    return Figures(speed, used.ru_maxrss * 1024, losses)


def seen(output: Path) -> tuple[list[float], list[int], list[float]]:
    """When each step of a process ended, its tokens, and its loss."""
    if output.is_file():
        document = json.loads(output.read_text())
        return document["times"], document["tokens"], document["losses"]
    [metrics] = output.glob("*/*/metrics.jsonl")
    steps = step_lines(metrics)
    return (
        [datetime.fromisoformat(line["time"]).timestamp() for line in steps],
        [int(line["tokens"]) for line in steps],
        [float(line["loss"]) for line in steps],
    )


def train_by_others(trainer: str, job: Path, output: Path) -> None:
    """Trains a job by TRL or transformers, and writes what `seen` reads."""
    import torch
    from bench import others
    from bench.peak_memory import step_tokens

    from finetune_api.manifest import read_manifest
    from finetune_trainer.model.load import load_model
    from finetune_trainer.plan.prepare import prepare

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    prepared = prepare(read_manifest(job).spec)
    model = load_model(prepared.spec, dtype="fp32", on_gpu=False)
    build = others.transformers if trainer == "transformers" else others.trl
    with redirect_stdout(sys.stderr):
        found = build(prepared, model, "fp32", output.with_suffix(".scratch"))
        times: list[float] = []
        found.add_callback(others.AfterStep(lambda: times.append(time.time())))
        found.train()
    document = {"times": times, "tokens": step_tokens(prepared), "losses": others.losses_of(found)}
    output.write_text(json.dumps(document), encoding="utf-8")


def lines(name: str, measured: Measured) -> list[str]:
    """The rows of the table for a case."""
    shown = []
    for load, trainers in measured.items():
        speed = {trainer: median(each.speed for each in all_) for trainer, all_ in trainers.items()}
        memory = {trainer: median(each.memory for each in all_) / MIB for trainer, all_ in trainers.items()}
        trl = max(value for trainer, value in speed.items() if trainer.startswith("TRL"))
        other = f"{speed['transformers']:.0f}" if "transformers" in speed else ""
        shown.append(
            f"| {name}, {load} | {speed['ours']:.0f} | {trl:.0f} | {other} | {speed['ours'] / trl:.2f}"
            f" | {memory['ours']:.0f} | {memory['TRL']:.0f} |"
        )
    return shown


if __name__ == "__main__":
    main()
