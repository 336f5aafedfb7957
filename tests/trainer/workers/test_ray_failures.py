from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.train import PreemptionInfo
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError

from finetune_api.failure import FailureClass, FineTuneError
from finetune_trainer.failures import LESS_MEMORY, worker_died
from finetune_trainer.workers.ray_failures import failure_of_run, lost_worker


def killed_by_ray() -> BaseException:
    error: BaseException = OutOfMemoryError("a worker was killed")  # type: ignore[no-untyped-call]
    return error


def test_a_worker_that_ray_killed_for_memory_ran_out_of_it() -> None:
    failure = failure_of_run(killed_by_ray())
    assert failure.failure_class is FailureClass.OUT_OF_MEMORY
    assert failure.message == f"a worker ran out of memory; {LESS_MEMORY}"


@pytest.mark.parametrize("error", [WorkerCrashedError(), ActorDiedError()])
def test_a_worker_that_ray_lost_is_a_lost_node(error: BaseException) -> None:
    failure = failure_of_run(error)
    assert failure.failure_class is FailureClass.NODE_LOST
    assert failure.message == f"a worker died; if the machine was short of memory, {LESS_MEMORY}"


def test_a_run_fails_as_its_worker_did() -> None:
    failed = WorkerGroupError("a worker failed", {1: WorkerCrashedError()})
    assert failure_of_run(failed).failure_class is FailureClass.NODE_LOST
    assert failure_of_run(ActorDiedError()).failure_class is FailureClass.NODE_LOST


def silent_worker() -> Exception:
    error: Exception = WorkerHealthCheckTimeoutError("it does not answer")  # type: ignore[no-untyped-call]
    return error


@pytest.mark.parametrize(
    "error",
    [
        WorkerGroupError(
            "a worker failed", {1: WorkerHealthCheckFailedError("it does not answer", ActorDiedError())}
        ),
        WorkerGroupError("a worker failed", {1: silent_worker()}),
        ControllerError(ActorDiedError()),
        PreemptionError(PreemptionInfo(None, {"node": [0]})),
    ],
    ids=["dead", "silent", "of the controller", "taken away"],
)
def test_a_worker_that_is_gone_is_a_lost_node_however_ray_train_says_so(error: BaseException) -> None:
    assert failure_of_run(error).failure_class is FailureClass.NODE_LOST


def test_what_a_worker_raised_keeps_its_class_in_ray_trains_wrapping() -> None:
    raised = FineTuneError(FailureClass.STORAGE_ERROR, "/runs: No space left on device")
    failure = failure_of_run(
        WorkerGroupError("a worker failed", {0: UserExceptionWithTraceback(raised, "Traceback")})
    )
    assert failure.failure_class is FailureClass.STORAGE_ERROR
    assert failure.message == "/runs: No space left on device"


def test_a_worker_that_cannot_be_made_says_why() -> None:
    said = (
        "The actor died because of an error raised in its creation task, ...\n  File ...\n"
        "ImportError: cannot import name 'LoraConfig' from 'peft' (/home/someone/peft.py)\n"
    )
    unmade = RayActorError("00", said, actor_init_failed=True)

    failure = failure_of_run(WorkerGroupError("a worker failed", {0: unmade}))

    assert failure.failure_class is FailureClass.UNKNOWN
    assert failure.message == (
        "a worker could not start: ImportError: cannot import name 'LoraConfig' from 'peft'"
        " (/home/someone/peft.py)"
    )


def test_a_worker_that_the_kernel_has_ended_for_memory_ran_out_of_it() -> None:
    failure = lost_worker(worker_died(), before=3, after=4)

    assert failure.failure_class is FailureClass.OUT_OF_MEMORY
    assert failure.message == f"a worker ran out of memory; {LESS_MEMORY}"


def test_where_the_kernel_has_ended_nobody_memory_is_not_blamed() -> None:
    failure = lost_worker(worker_died(), before=3, after=3)

    assert failure.failure_class is FailureClass.NODE_LOST
    assert LESS_MEMORY not in failure.message


@pytest.mark.parametrize(("before", "after"), [(None, 3), (3, None), (None, None)])
def test_where_the_kernel_says_nothing_memory_may_be_to_blame(before: int | None, after: int | None) -> None:
    assert lost_worker(worker_died(), before=before, after=after) == worker_died()
