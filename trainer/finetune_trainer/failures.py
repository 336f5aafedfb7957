"""Turns exceptions into failures: a failure class, and a message that a person can act on."""

from __future__ import annotations

import errno

import torch
import torch.distributed as dist
from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError

from finetune_api.failure import FailureClass, FineTuneError
from finetune_api.status import Failure

LESS_MEMORY = (
    "lower spec.train_batch_size_per_device (and raise spec.gradient_accumulation_steps by as much: the"
    " result stays the same), lower spec.context_length, or keep spec.gradient_checkpointing on"
)

PEER_GONE = ("Connection closed by peer", "Connection reset by peer")
"""What gloo's errors contain on the surviving workers when one dies; it has no exceptions of its own."""

WORKER_GONE = (
    RayActorError,
    WorkerCrashedError,
    WorkerHealthCheckTimeoutError,
    PreemptionError,
    dist.DistError,
)


def failure_of(error: BaseException) -> Failure:
    """The failure that an exception means. Other exceptions become Unknown, with their own message."""
    if isinstance(error, FineTuneError):
        return Failure(failure_class=error.failure_class, message=str(error))
    if isinstance(
        error, torch.OutOfMemoryError | MemoryError | OutOfMemoryError
    ) or "can't allocate memory" in str(error):
        return Failure(
            failure_class=FailureClass.OUT_OF_MEMORY, message=f"a worker ran out of memory; {LESS_MEMORY}"
        )
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
    if isinstance(error, WORKER_GONE) or any(words in str(error) for words in PEER_GONE):
        return Failure(
            failure_class=FailureClass.NODE_LOST,
            message=f"a worker died; if the machine was short of memory, {LESS_MEMORY}",
        )
    return Failure(failure_class=FailureClass.UNKNOWN, message=f"{type(error).__name__}: {error}"[:8192])


def failure_of_run(error: BaseException) -> Failure:
    """The failure of a run on Ray Train, from the exception that Ray Train raised."""
    return failure_of(_cause(error))


def _cause(error: BaseException) -> BaseException:
    """The exception that Ray Train has wrapped in its own."""
    match error:
        case WorkerGroupError() if error.worker_failures:
            return _cause(next(iter(error.worker_failures.values())))
        case ControllerError():
            return _cause(error.controller_failure)
        case WorkerHealthCheckFailedError():
            return _cause(error.health_check_failure)
        case UserExceptionWithTraceback():
            return _cause(error._base_exc)
        case _:
            return error
