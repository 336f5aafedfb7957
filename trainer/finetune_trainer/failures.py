"""Turns exceptions into failures: a failure class, and a message that a person can act on."""

from __future__ import annotations

import errno

import torch
import torch.distributed as dist

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.status import Failure

LESS_MEMORY = (
    "lower spec.train_batch_size_per_device (and raise spec.gradient_accumulation_steps by as much: the"
    " result stays the same), lower spec.context_length, or set spec.gradient_checkpointing to true"
)

PEER_GONE = ("Connection closed by peer", "Connection reset by peer")
"""What gloo's errors contain on the surviving workers when one dies; it has no exceptions of its own."""


def failure_of(error: BaseException) -> Failure:
    """The failure that an exception means. Other exceptions become Unknown, with their own message."""
    if isinstance(error, FineTuneError):
        return Failure(failure_class=error.failure_class, message=str(error))
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return out_of_memory()
    if isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.EROFS,
        errno.EFBIG,
    ):
        return Failure(
            failure_class=FailureClass.STORAGE_ERROR,
            message=f"{error.filename or 'storage'}: {error.strerror}",
        )
    if isinstance(error, ImportError):
        return _not_imported(error)
    if isinstance(error, dist.DistError) or any(words in str(error) for words in PEER_GONE):
        return worker_died()
    return Failure(failure_class=FailureClass.UNKNOWN, message=f"{type(error).__name__}: {error}"[:8192])


def out_of_memory() -> Failure:
    """The failure of a worker that ran out of memory."""
    message = f"a worker ran out of memory; {LESS_MEMORY}"
    return Failure(failure_class=FailureClass.OUT_OF_MEMORY, message=message)


def worker_died(*, short_of_memory: bool | None = None) -> Failure:
    """The failure of a worker that died without giving a reason.

    `short_of_memory` is False where the machine is known to have ended no process for want of memory.
    """
    memory = f"if the machine was short of memory, {LESS_MEMORY}"
    enough = "it was not for want of memory; its last words may be in Ray's logs"
    message = f"a worker died; {enough if short_of_memory is False else memory}"
    return Failure(failure_class=FailureClass.NODE_LOST, message=message)


def could_not_start(said: str) -> Failure:
    """The failure of a worker that raised an exception before it could train; `said` ends with it."""
    last = (said.strip().splitlines() or ["no reason is given"])[-1].strip()
    return Failure(failure_class=FailureClass.UNKNOWN, message=f"a worker could not start: {last}"[:8192])


def _not_imported(error: ImportError) -> Failure:
    read = f"; it was read from {error.path}" if error.path and error.path not in str(error) else ""
    message = (
        f"{error.name or 'a library'} cannot be imported: {error}{read}; install what is missing, or rename a"
        " file of yours that has a library's name"
    )
    return Failure(failure_class=FailureClass.UNKNOWN, message=message)
