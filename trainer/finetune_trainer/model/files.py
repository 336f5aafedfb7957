"""Says which file of a model, a tokenizer or an adapter is damaged, and how.

Libraries raise whatever they meet when they read such a file: some of it names no file, some is no error of
reading at all.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from finetune_api.failure import FailureClass, FineTuneError

LARGEST_POINTER = 1024
"""The most bytes that a pointer of git-lfs may have, by its specification."""
OBJECTS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "adapter_config.json",
    "quantization_config.json",
    "model.safetensors.index.json",
)
"""Small files of a JSON object each."""
LARGE = ("tokenizer.json", "vocab.json")
"""The same, but large: they are looked into only when reading them has failed."""
READ = ("*.json", "*.jinja", "*.safetensors", "*.model")

Look = Callable[[Path], str | None]
"""Looks at a file, and says what is wrong with it, if anything is."""

_POINTER = b"version https://git-lfs.github.com/spec/"
_AGAIN = "copy it there again"
_log = logging.getLogger(__name__)


def check_files(directory: Path, where: str) -> None:
    """Looks at what can be seen quickly of the files in a model's or an adapter's directory.

    Raises FineTuneError (ModelNotFound) with a problem for every file that is empty, a pointer, or a small
    one that is not the JSON that it must be; each begins with `where`, the field that names the directory.
    """
    _refuse(directory, where, _quick)


def check_readable(directory: Path, where: str) -> None:
    """Looks at all that can be seen of the files, which takes a while for large ones.

    Raises FineTuneError (ModelNotFound) with a problem for every damaged file, as `check_files` does.
    """
    _refuse(directory, where, _problem)


def pointer(start: bytes) -> str | None:
    """What is wrong with a file that begins so, if it is one that git-lfs leaves where it has not fetched."""
    if not start.startswith(_POINTER):
        return None
    return "is a pointer of git-lfs, not the file itself; fetch it with `git lfs pull`"


@contextmanager
def reading(directory: Path, where: str) -> Iterator[None]:
    """Turns whatever a library raises while it reads the directory's files into a FineTuneError.

    It names the damaged files (ModelNotFound); where all look right, it has the first line of what the
    library says. What is about memory or storage, and what is for people already, stays as it is.
    """
    try:
        yield
    except (FineTuneError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "can't allocate memory" in str(error):
            raise
        _log.info("%s cannot be read", directory, exc_info=error)
        check_readable(directory, where)
        raise FineTuneError(
            FailureClass.MODEL_NOT_FOUND, f"{where}: {directory} cannot be read: {one_line(error)}"
        ) from error


def _refuse(directory: Path, where: str, look: Look) -> None:
    problems = []
    for file in sorted({file for pattern in READ for file in directory.glob(pattern)}):
        problem = look(file)
        if problem is not None:
            problems.append(f"{where}: {file} {problem}")
    if problems:
        raise FineTuneError(FailureClass.MODEL_NOT_FOUND, *problems)


def _quick(file: Path) -> str | None:
    if not file.is_file():
        return "is a directory, not a file" if file.name in (*OBJECTS, *LARGE) else None
    with file.open("rb") as stream:
        start = stream.read(len(_POINTER))
    if not start:
        return f"is empty; {_AGAIN}"
    problem = pointer(start)
    return _not_an_object(file) if problem is None and file.name in OBJECTS else problem


def _problem(file: Path) -> str | None:
    problem = _quick(file)
    if problem is not None:
        return problem
    if file.name in LARGE:
        problem = _not_an_object(file)
    if problem is None and file.name == "tokenizer.json":
        return _no_tokenizer(file)
    if file.suffix == ".jinja":
        return _not_text(file)
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as tensors:
                tensors.keys()
        except (SafetensorError, OSError) as error:
            return f"is damaged ({one_line(error)}); {_AGAIN}"
    return problem


def _not_text(file: Path) -> str | None:
    try:
        file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        return f"is not UTF-8 text from byte {error.start + 1} on; {_AGAIN}"
    return None


def _not_an_object(file: Path) -> str | None:
    problem = _not_text(file)
    if problem is not None:
        return problem
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({one_line(error)}), as one that is cut off; {_AGAIN}"
    return None if isinstance(content, dict) else f"must be a JSON object; {_AGAIN}"


def _no_tokenizer(file: Path) -> str | None:
    """Why the installed package tokenizers does not take a tokenizer.json that is a JSON object."""
    try:
        Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 - a plain Exception is what it raises
        kind = json.loads(file.read_text(encoding="utf-8")).get("model")
        kind = kind.get("type") if isinstance(kind, dict) else None
        installed = f"tokenizers {version('tokenizers')}"
        if isinstance(kind, str) and "variant" in str(error):
            known = "a newer version may, or use a model whose tokenizer.json it reads"
            return f"has a model of type {kind}, which {installed} does not know or not in this form; {known}"
        return f"is none that {installed} reads ({one_line(error)}); {_AGAIN}"
    return None


def one_line(error: BaseException) -> str:
    """The beginning of what an exception says, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
