"""The `finetune` command as a process of its own, and small jobs to give to it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml
from pydantic import JsonValue

from make_tiny_rows import make_tiny_rows

FINETUNE = Path(sys.executable).with_name("finetune")
"""The command as it is installed."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str
    processes: tuple[str, ...] = ()
    """The titles of its children while it ran, where that was looked at."""


Command = Callable[..., Ended]


def process(*arguments: str | Path, cwd: Path, timeout: float = 300, **environment: str) -> Ended:
    """The same as a process of its own, whose standard output and error are no terminals."""
    ended = subprocess.run(
        [FINETUNE, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def terminated(directory: Path, *arguments: str, with_children: bool = False) -> Ended:
    """SIGTERM where there is no terminal, once a line tells of a step; to its children too, if asked for."""
    training = subprocess.Popen(
        [FINETUNE, *arguments], cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert training.stdout is not None
    out = ""
    while not re.search(r"^epoch .* step ", out, re.MULTILINE):
        line = training.stdout.readline()
        assert line, training.communicate()
        out += line
    children = psutil.Process(training.pid).children(recursive=True) if with_children else []
    titles = tuple("".join(child.cmdline()[:1]) for child in children)
    for child in children:
        child.send_signal(signal.SIGTERM)
    training.send_signal(signal.SIGTERM)
    rest, err = training.communicate(timeout=240)
    return Ended(training.returncode, out + rest, err, titles)


def only_run(storage: Path) -> Path:
    """The directory of the one run that is in a storage."""
    [job_yaml] = storage.glob("*/*/job.yaml")
    return job_yaml.parent


def write_job(path: Path, fields: Mapping[str, JsonValue]) -> Path:
    """A FineTuneJob with these fields in its spec."""
    job = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "tiny"},
        "spec": dict(fields),
    }
    path.write_text(yaml.safe_dump(job))
    return path


def small_job(directory: Path, model: Path, **fields: JsonValue) -> Path:
    """A job of two epochs of three steps on the tiny model; LoRA unless `lora_config` is None."""
    make_tiny_rows(directory / "train.jsonl", 12)
    make_tiny_rows(directory / "valid.jsonl", 4, seed=1)
    chosen: dict[str, JsonValue] = {
        "model_id": str(model),
        "train_path": "train.jsonl",
        "valid_path": "valid.jsonl",
        "task": "instruction_tuning",
        "lora_config": {"r": 4},
        "learning_rate": 1e-3,
        "num_warmup_steps": 1,
        "num_epochs": 2,
        "train_batch_size_per_device": 4,
        "num_checkpoints_to_keep": 2,
    }
    return write_job(
        directory / "job.yaml",
        {name: value for name, value in {**chosen, **fields}.items() if value is not None},
    )


def json_of(ended: Ended) -> dict[str, JsonValue]:
    """What a command wrote to standard output, which must be one JSON object and nothing else."""
    document = json.loads(ended.out)
    assert isinstance(document, dict)
    return document
