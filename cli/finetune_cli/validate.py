"""`finetune validate`: every mistake of every file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune_api.changed_fields import ChangedField
from finetune_api.devices import worker_device
from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.manifest import Manifest, read_manifest
from finetune_cli.plain_text import console, one_line, say_problems, say_warnings


def validate_files(files: Sequence[Path], changes: Sequence[ChangedField] = ()) -> int:
    """Prints what is wrong with each file, or `FILE: ok`; `changes` are made to each before.

    Returns the exit code: 1 if any file is wrong.
    """
    wrong = 0
    for file in files:
        try:
            manifest = read_for_a_cluster(file, changes)
        except FineTuneError as error:
            wrong += 1
            say_problems(_of(file, error.problems))
        else:
            say_warnings(_of(file, manifest.warnings))
            console().print(f"{one_line(str(file))}: ok")
    return 1 if wrong else 0


def read_for_a_cluster(file: Path, changes: Sequence[ChangedField] = ()) -> Manifest:
    """A manifest whose workers ask for a device that is known, or for none; on one machine they get its own.

    Raises FineTuneError (InvalidSpec) with every mistake.
    """
    manifest = read_manifest(file, changes)
    problems = worker_device(manifest.spec.worker_resources or {}).problems
    if problems:
        raise FineTuneError(FailureClass.INVALID_SPEC, *problems)
    return manifest


def _of(file: Path, remarks: Sequence[str]) -> list[str]:
    """The remarks with the file's name in front; those about a line of the file have it already."""
    return [remark if remark.startswith(f"{file}:") else f"{file}: {remark}" for remark in remarks]
