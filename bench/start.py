"""How long a run takes to its first optimizer step, beside a plain script that trains the same steps.

    make bench-start
    python bench/start.py [--models toy smollm2] [--rounds 5] [--resume-finished] [--json FILE]

Run it from the project's folder, in an environment with the trainer, on a machine that does nothing else.
In each round a new process of `finetune run` and one of `bench/plain_script.py` train the same job, one
after the other, each with a storage directory of its own; they take turns in who is first. Both are watched
from outside:

    to first step    from starting the process to the line of the first optimizer step in its file
    other steps      from that line to the line of the last step
    to prompt        from that line to the end of the process
    finished         with --resume-finished: the same command again, now that the run is finished

A line is looked for every 10 ms. A table shows the median of the rounds in seconds, the fastest and the
slowest, and the ratio of the medians. The benchmark fails when a process fails, and when the two did not
train the same: the loss of each step must agree to 1e-4.

The models are `toy`, of 0.2 million parameters, and `smollm2`, SmolLM2-135M-Instruct, which the first run
downloads (93 MB). Both train a LoRA on one device, 4 steps of 4 short conversations, in fp32.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
INPUTS = ROOT / "examples" / "inputs"
PLAIN_SCRIPT = ROOT / "bench" / "plain_script.py"

ROWS, BATCH_SIZE = 16, 4
STEPS = ROWS // BATCH_SIZE
LOSS_TOLERANCE = 1e-4
POLL_SECONDS = 0.01
OUTPUT = "output.txt"
"""What a program prints, in its directory."""

Document = dict[str, object]
Seconds = list[float]
"""A measurement of each round."""


@dataclass(frozen=True)
class Timing:
    """What one process took, in seconds."""

    to_first_step: float
    other_steps: float
    to_prompt: float


@dataclass(frozen=True)
class Program:
    """One way to train a job."""

    arguments: Sequence[str]
    step_lines: str
    """Where in its directory it writes a line of JSON for each step; a glob pattern."""


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(
        description="Measures `finetune run` to its first step beside a plain script."
    )
    parser.add_argument("--models", nargs="+", choices=("toy", "smollm2"), default=["toy", "smollm2"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--resume-finished", action="store_true", help="also run the finished job again, which only shows it"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures there")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")

    figures: dict[str, dict[str, dict[str, Seconds]]] = {}
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as scratch:
        for model in arguments.models:
            directory = Path(scratch) / model
            directory.mkdir()
            job = write_job(directory, model_directory(model, directory))
            figures[model] = measure(job, directory, arguments.rounds, arguments.resume_finished)
    for model, measured in figures.items():
        print(f"\n{model}, {arguments.rounds} rounds, seconds: median (fastest - slowest)\n")
        print(table(measured))
    if arguments.json:
        document = {"machine": machine(), "rounds": arguments.rounds, "seconds": figures}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def model_directory(model: str, directory: Path) -> Path:
    """Makes the model and the conversations, unless they are there, and returns the model's directory."""
    what = "all" if model == "smollm2" else "data"
    subprocess.run([sys.executable, ROOT / "examples" / "make_inputs.py", "--what", what], check=True)
    if model == "smollm2":
        return INPUTS / "smollm2-135m-instruct"
    made = directory / "model"
    subprocess.run([sys.executable, ROOT / "examples" / "make_tiny_model.py", made], check=True)
    return made


def write_job(directory: Path, model: Path) -> Path:
    """Writes the job that both train and its ROWS conversations, and returns the job's file."""
    rows = (INPUTS / "stdlib-train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:ROWS]
    train_path = directory / "train.jsonl"
    train_path.write_text("".join(rows), encoding="utf-8")
    spec: Document = {
        "model_id": str(model),
        "train_path": str(train_path),
        "task": "instruction_tuning",
        "lora_config": {"r": 8, "lora_alpha": 16},
        "dtype": "fp32",
        "seed": 0,
        "learning_rate": 3e-4,
        "lr_scheduler_type": "constant",
        "num_warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "num_epochs": 1,
        "train_batch_size_per_device": BATCH_SIZE,
        "gradient_checkpointing": False,
    }
    job = directory / "job.yaml"
    job.write_text(json.dumps(spec, indent=2), encoding="utf-8")  # JSON is YAML
    return job


def measure(job: Path, directory: Path, rounds: int, resume_finished: bool) -> dict[str, dict[str, Seconds]]:
    """The seconds of each program, `finetune` and `plain`, by measurement and round.

    Raises SystemExit when a process fails, or when the two do not train the same steps.
    """
    command = str(Path(sys.executable).with_name("finetune"))
    programs = {
        "finetune": Program((command, "run", str(job), "--storage", "."), "*/*/metrics.jsonl"),
        "plain": Program((sys.executable, str(PLAIN_SCRIPT), str(job), "adapter"), OUTPUT),
    }
    seconds: dict[str, dict[str, Seconds]] = {name: {} for name in programs}
    for round_ in range(1, rounds + 1):
        losses: dict[str, list[float]] = {}
        for name in sorted(programs, reverse=round_ % 2 == 0):
            storage = directory / f"{name}-{round_}"
            storage.mkdir()
            timing, losses[name] = train(programs[name], storage)
            measured = asdict(timing)
            if name == "finetune" and resume_finished:
                measured["finished"] = run_again(programs[name], storage)
            for measurement, value in measured.items():
                seconds[name].setdefault(measurement, []).append(value)
            shown = ", ".join(f"{words(each)} {value:.2f} s" for each, value in measured.items())
            print(f"round {round_}, {name}: {shown}; first loss {losses[name][0]:.6f}", flush=True)
        check_losses(losses["finetune"], losses["plain"])
    return seconds


def check_losses(ours: list[float], theirs: list[float]) -> None:
    """Raises SystemExit when the losses of a step differ by more than LOSS_TOLERANCE."""
    for step, (our_loss, their_loss) in enumerate(zip(ours, theirs, strict=True), start=1):
        if not abs(our_loss - their_loss) <= LOSS_TOLERANCE:  # written so that NaN fails
            raise SystemExit(
                f"they do not train the same: the loss of step {step} is {our_loss} in `finetune run` and"
                f" {their_loss} in the plain script"
            )


def train(program: Program, storage: Path) -> tuple[Timing, list[float]]:
    """Runs the program in the empty directory `storage`; its timing, and the loss of each step.

    Raises SystemExit when it fails or does not train STEPS steps.
    """
    seen_at: list[float] = []
    began = time.monotonic()
    process = start(program, storage)
    try:
        while process.poll() is None:
            seen_at += [time.monotonic()] * (len(losses_in(storage, program)) - len(seen_at))
            time.sleep(POLL_SECONDS)
    finally:
        process.kill()  # does nothing to one that has ended
        process.wait()
    ended = time.monotonic()
    if process.returncode or len(seen_at) != STEPS:
        raise SystemExit(
            f"{' '.join(program.arguments)} ended with {process.returncode}; {len(seen_at)} of {STEPS} steps"
            f" were seen\n{(storage / OUTPUT).read_text()}"
        )
    timing = Timing(
        to_first_step=seen_at[0] - began, other_steps=seen_at[-1] - seen_at[0], to_prompt=ended - seen_at[-1]
    )
    return timing, losses_in(storage, program)


def run_again(program: Program, storage: Path) -> float:
    """The seconds that the program takes where it has trained before. Raises SystemExit when it fails."""
    began = time.monotonic()
    returncode = start(program, storage).wait()
    if returncode:
        raise SystemExit(
            f"{' '.join(program.arguments)} ended with {returncode} on a finished run\n"
            f"{(storage / OUTPUT).read_text()}"
        )
    return time.monotonic() - began


def start(program: Program, storage: Path) -> subprocess.Popen[bytes]:
    """Starts the program in `storage`, in this process's environment; what it prints goes to a file there."""
    with (storage / OUTPUT).open("wb") as output:
        return subprocess.Popen(
            program.arguments, cwd=storage, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )


def losses_in(storage: Path, program: Program) -> list[float]:
    """The losses of the steps whose lines are complete, in order."""
    lines = [line for file in storage.glob(program.step_lines) for line in file.read_text().splitlines(True)]
    written = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]
    return [float(line["loss"]) for line in written if "loss" in line]


def table(measured: dict[str, dict[str, Seconds]]) -> str:
    """A Markdown table of one model: a row for each measurement, with the ratio of the medians."""
    lines = ["| | finetune run | plain script | ratio |", "|---|---|---|---|"]
    for measurement, ours in measured["finetune"].items():
        theirs = measured["plain"].get(measurement)
        ratio = f"{median(ours) / median(theirs):.2f}" if theirs else ""
        lines.append(
            f"| {words(measurement)} | {spread(ours)} | {spread(theirs) if theirs else ''} | {ratio} |"
        )
    return "\n".join(lines)


def words(measurement: str) -> str:
    """A measurement's name as people read it."""
    return measurement.replace("_", " ")


def spread(seconds: Seconds) -> str:
    """`median (fastest - slowest)`."""
    return f"{median(seconds):.2f} ({min(seconds):.2f} - {max(seconds):.2f})"


def machine() -> Document:
    """What the figures depend on besides the code."""
    packages = ("torch", "transformers", "peft", "ray")
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in packages},
    }


if __name__ == "__main__":
    main()
