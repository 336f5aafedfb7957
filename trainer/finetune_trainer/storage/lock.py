"""Keeps two processes of one machine out of the same run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.fields import scheme
from finetune_trainer.storage.failure import explained
from finetune_trainer.storage.run_directory import RunDirectory


@contextmanager
def locked(run: RunDirectory) -> Iterator[None]:
    """Locks the run directory for the `with` block. Does nothing unless it is a local path.

    Raises FineTuneError (StorageError) when another process holds the lock.
    """
    if scheme(run.path):
        yield
        return
    with explained(run.path):
        Path(run.path).mkdir(parents=True, exist_ok=True)
        directory = os.open(run.path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            busy = f"{run.path}: another process is training there; wait until it has ended"
            raise FineTuneError(FailureClass.STORAGE_ERROR, busy) from error
        yield
    finally:
        os.close(directory)
