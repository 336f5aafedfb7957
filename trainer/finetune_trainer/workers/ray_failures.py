"""From what Ray raises to a failure."""

from __future__ import annotations

from ray.exceptions import OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError

from finetune_api.status import Failure
from finetune_trainer.failures import could_not_start, failure_of, out_of_memory, worker_died

WORKER_GONE = (RayActorError, WorkerCrashedError, WorkerHealthCheckTimeoutError, PreemptionError)


def failure_of_run(error: BaseException) -> Failure:
    """The failure of a run whose workers could not say themselves what was wrong."""
    cause = _cause(error)
    if isinstance(cause, OutOfMemoryError):
        return out_of_memory()
    if isinstance(cause, RayActorError) and cause.actor_init_failed:
        return could_not_start(str(cause))
    return worker_died() if isinstance(cause, WORKER_GONE) else failure_of(cause)


def lost_worker(failure: Failure, *, before: int | None, after: int | None) -> Failure:
    """The failure of a worker that is gone, by how many processes the kernel of its machine ended for memory.

    `before` is their number when the workers were started, `after` now; None where that is not known.
    """
    if before is None or after is None:
        return failure
    return out_of_memory() if after > before else worker_died(short_of_memory=False)


def _cause(error: BaseException) -> BaseException:
    """What happened, without what Ray Train wraps it in."""
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
