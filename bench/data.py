"""How fast rows become tokens and are trained on, and in how much memory, as files of rows grow.

    PYTHONPATH=.:examples python -m bench.data [--small] [--only reading rows] [--json FILE]

Run it in an environment with the trainer, on a machine that does nothing else. Two tables:

    reading   `finetune plan` on 10 MB, 100 MB and 1 GB of JSON lines, and on one of rows of 100,000 tokens.
              Each file is read twice: with a cache that is empty, and then from the cache.
    rows      `finetune run` on 1,000, 10,000 and 100,000 rows of one distribution, until STEPS steps are
              done; tokens per second are those of the steps after the first WARM_UP.

Each is a process of its own, and is watched from outside: memory is the most that the process and its
children had of their own at once (`RssAnon`), looked at 20 times a second. What is mapped from files is not
in it, since the system takes that back when it needs it. `--small` is a try of about a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from pydoc_data.topics import topics

import psutil

from make_tiny_model import make_tiny_model

FINETUNE = str(Path(sys.executable).with_name("finetune"))
LOOK_SECONDS = 0.05
STEPS, WARM_UP = 60, 10
LONG_ROW_TOKENS = 100_000
MB = 10**6


@dataclass(frozen=True)
class Reading:
    """What `finetune plan` took for a file."""

    file: str
    rows: int
    tokens: int
    cached: bool
    seconds: float
    memory_mb: float


@dataclass(frozen=True)
class Training:
    """What `finetune run` took for a number of rows."""

    rows: int
    to_first_step: float
    tokens_per_second: float
    memory_mb: float


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description="Measures how reading and training go with the rows.")
    parser.add_argument("--small", action="store_true", help="small files, to try the benchmark itself")
    parser.add_argument("--only", nargs="+", choices=("reading", "rows"), default=["reading", "rows"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    arguments = parser.parse_args()
    sizes, counts = ([2, 20], [100, 1000]) if arguments.small else ([10, 100, 1000], [1000, 10_000, 100_000])
    figures: dict[str, list[dict[str, object]]] = {}
    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as scratch:
        directory = Path(scratch)
        model = make_tiny_model(directory / "model", max_position_embeddings=LONG_ROW_TOKENS * 2)
        if "reading" in arguments.only:
            readings = measure_reading(directory, model, sizes, long_rows=8 if arguments.small else 200)
            print(table_of_reading(readings), flush=True)
            figures["reading"] = [asdict(each) for each in readings]
        if "rows" in arguments.only:
            trainings = [train(directory, model, rows) for rows in counts]
            print(table_of_training(trainings), flush=True)
            figures["rows"] = [asdict(each) for each in trainings]
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def measure_reading(directory: Path, model: Path, sizes: Sequence[int], *, long_rows: int) -> list[Reading]:
    """What `finetune plan` takes for files of these sizes in MB, and for one of long rows."""
    measured = []
    for name, written in [
        *((f"{size} MB", rows_up_to(size * MB)) for size in sizes),
        (f"{long_rows} rows of {LONG_ROW_TOKENS:,} tokens", long_lines(long_rows)),
    ]:
        file = directory / "rows.jsonl"
        with file.open("w", encoding="utf-8") as stream:
            stream.writelines(written)
        job = write_job(directory, model, file)
        for cached in (False, True):
            began = time.monotonic()
            process = start(directory, "plan", str(job), "-o", "json")
            memory = watch(process, lambda: False)
            seconds = time.monotonic() - began
            counted = json.loads((directory / "output.txt").read_text(encoding="utf-8"))["tokenStatistics"]
            measured.append(Reading(name, counted["rows"], counted["tokens"], cached, seconds, memory))
        file.unlink()
    return measured


def train(directory: Path, model: Path, rows: int) -> Training:
    """What `finetune run` takes for so many rows, of which STEPS steps are trained."""
    file = directory / "rows.jsonl"
    lines = some_rows(seed=0)
    with file.open("w", encoding="utf-8") as stream:
        stream.writelines(next(lines) for _ in range(rows))
    storage = directory / f"runs-{rows}"
    job = write_job(directory, model, file, train_batch_size_per_device=1)
    began = time.monotonic()
    process = start(directory, "run", str(job), "--storage", str(storage))
    first: list[float] = []

    def enough() -> bool:
        done = steps_of(storage)
        if done and not first:
            first.append(time.monotonic())
        return len(done) > STEPS

    memory = watch(process, enough, failing=False)
    counted = steps_of(storage)[WARM_UP : STEPS + 1]
    if len(counted) <= STEPS - WARM_UP:
        raise SystemExit(f"only {len(counted)} steps\n{(directory / 'output.txt').read_text()}")
    seconds = sum(float(str(step["tokens"])) / float(str(step["tokensPerSecond"])) for step in counted)
    tokens = sum(int(str(step["tokens"])) for step in counted)
    return Training(rows, first[0] - began, tokens / seconds, memory)


def some_rows(seed: int) -> Iterator[str]:
    """Lines of conversations about Python, without end, of about 1,200 characters; no two are alike."""
    words = " ".join(topics.values()).split()
    choice = random.Random(seed)
    for number in count():
        begin, length = choice.randrange(len(words) - 400), choice.randrange(10, 300)
        yield line(f"{number}: {' '.join(words[begin : begin + 12])}", " ".join(words[begin + 12 :][:length]))


def rows_up_to(size: int) -> Iterator[str]:
    """Lines of so many bytes in all."""
    written = 0
    for text in some_rows(seed=0):
        written += len(text)
        yield text
        if written >= size:
            return


def long_lines(rows: int) -> Iterator[str]:
    """Lines of about LONG_ROW_TOKENS tokens each: the text of the documentation again and again."""
    text = " ".join(topics.values())
    for number in range(rows):
        yield line(f"{number}?", (text[number * 97 :] + text)[: 3 * LONG_ROW_TOKENS])


def line(question: str, answer: str) -> str:
    """A row as a line of JSON."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns}) + "\n"


def write_job(directory: Path, model: Path, file: Path, **fields: object) -> Path:
    """Writes the job, and returns its file."""
    spec = {
        "model_id": str(model),
        "train_path": str(file),
        "task": "instruction_tuning",
        "lora_config": {"r": 8},
        "context_length": 2048,
        "num_epochs": 1,
        "num_warmup_steps": 1,
        "dtype": "fp32",
        **fields,
    }
    job = directory / "job.yaml"
    job.write_text(json.dumps(spec), encoding="utf-8")  # JSON is YAML
    return job


def start(directory: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Starts the command, with a cache in `directory`; what it prints is in `output.txt` there."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(directory / "cache")}
    with (directory / "output.txt").open("wb") as output, (directory / "errors.txt").open("wb") as errors:
        return subprocess.Popen(
            [FINETUNE, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=environment
        )


def watch(process: subprocess.Popen[bytes], enough: Callable[[], bool], *, failing: bool = True) -> float:
    """The most memory of their own, in MB, that a process and its children had at once until it ended.

    It is stopped once there is `enough`. Raises SystemExit when it fails, unless it may.
    """
    most = 0.0
    watched = psutil.Process(process.pid)
    try:
        while process.poll() is None:
            with_children = [watched]
            try:
                with_children += watched.children(recursive=True)
            except psutil.NoSuchProcess:
                break
            most = max(most, sum(map(own_memory, with_children)) / MB)
            if enough():
                process.send_signal(signal.SIGTERM)
                process.wait()
            time.sleep(LOOK_SECONDS)
        process.wait()
    finally:
        process.kill()  # does nothing to one that has ended
        process.wait()
    if failing and process.returncode:
        raise SystemExit(f"{process.args!r} ended with {process.returncode}")
    return most


def own_memory(process: psutil.Process) -> int:
    """The bytes of a process that are of no file; 0 for one that is gone."""
    try:
        for entry in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if entry.startswith("RssAnon:"):
                return int(entry.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def steps_of(storage: Path) -> list[dict[str, object]]:
    """The lines of the steps that a run has done."""
    lines = [text for file in storage.glob("*/*/metrics.jsonl") for text in file.read_text().splitlines(True)]
    return [step for step in (json.loads(text) for text in lines if text.endswith("\n")) if "loss" in step]


def table_of_reading(measured: Sequence[Reading]) -> str:
    """A Markdown table."""
    lines = [
        "| file | rows | tokens | from | seconds | tokens a second | own memory, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in measured:
        source = "the cache" if each.cached else "the file"
        lines.append(
            f"| {each.file} | {each.rows:,} | {each.tokens:,} | {source} | {each.seconds:.1f} |"
            f" {each.tokens / each.seconds:,.0f} | {each.memory_mb:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def table_of_training(measured: Sequence[Training]) -> str:
    """A Markdown table; the last column is the ratio to the fewest rows."""
    lines = [
        "| rows | to the first step, s | tokens a second | own memory, MB | tokens a second, ratio |",
        "|---|---|---|---|---|",
    ]
    for each in measured:
        ratio = each.tokens_per_second / measured[0].tokens_per_second
        lines.append(
            f"| {each.rows:,} | {each.to_first_step:.1f} | {each.tokens_per_second:,.0f} |"
            f" {each.memory_mb:,.0f} | {ratio:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
