from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, WorkerCrashedError
from ray.train.v2.api.exceptions import WorkerGroupError

from finetune_api.failure import FailureClass
from finetune_api.status import ProgressRecord
from finetune_trainer.failures import LESS_MEMORY, failure_of, out_of_memory, worker_died
from finetune_trainer.training.job import Outcome
from finetune_trainer.workers.progress_board import Notice
from finetune_trainer.workers.ray_train import TAKEN_AWAY, how_it_ended
from finetune_trainer.workers.workers import Ended

UNKNOWN = (None, None)
RECORD = ProgressRecord(attempt=1)
GONE = WorkerGroupError("a worker failed", {0: ActorDiedError(), 1: WorkerCrashedError()})


def ended(
    notice: Notice,
    error: BaseException | None = None,
    *,
    taken_away: bool = False,
    stopped: bool = False,
    kills: tuple[int | None, int | None] = UNKNOWN,
) -> Ended:
    return how_it_ended(notice, error, taken_away=taken_away, stopped=stopped, kills=kills)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_without_an_error_it_ended_as_rank_0_says(outcome: Outcome) -> None:
    assert ended(Notice(record=RECORD, outcome=str(outcome))) == Ended(RECORD, outcome)


def test_a_node_that_is_taken_away_is_a_failure_although_a_snapshot_is_saved() -> None:
    end = ended(Notice(record=RECORD, outcome="stopped"), taken_away=True)

    assert end.failure is not None
    assert (end.failure.failure_class, end.failure.message) == (FailureClass.NODE_LOST, TAKEN_AWAY)


@pytest.mark.parametrize("said", [None, worker_died()], ids=["nobody", "a-worker-that-is-left"])
def test_workers_that_are_signalled_with_the_command_are_not_lost_but_stopped(said: object) -> None:
    notice = Notice(record=RECORD, failure=None if said is None else worker_died())

    end = ended(notice, GONE, stopped=True)

    assert end == Ended(RECORD, Outcome.STOPPED, saved=False)


def test_workers_that_had_saved_before_they_were_ended_have_a_snapshot() -> None:
    end = ended(Notice(record=RECORD, outcome="stopped"), GONE, stopped=True)

    assert end == Ended(RECORD, Outcome.STOPPED, saved=True)


def test_what_fails_for_a_reason_of_its_own_fails_although_a_stop_was_asked_for() -> None:
    diverged = failure_of(ValueError("the loss is nan"))

    assert ended(Notice(record=RECORD, failure=diverged), GONE, stopped=True).failure == diverged


@pytest.mark.parametrize("said", [None, worker_died()], ids=["nobody", "a-worker-that-is-left"])
def test_memory_is_named_where_the_kernel_has_ended_a_process(said: object) -> None:
    notice = Notice(record=RECORD, failure=None if said is None else worker_died())

    assert ended(notice, GONE, kills=(2, 3)).failure == out_of_memory()


def test_memory_is_not_named_where_it_has_ended_none() -> None:
    failure = ended(Notice(record=RECORD), GONE, kills=(2, 2)).failure

    assert failure is not None
    assert failure.failure_class is FailureClass.NODE_LOST
    assert LESS_MEMORY not in failure.message


def test_on_other_machines_nobody_knows() -> None:
    assert ended(Notice(record=RECORD), GONE).failure == worker_died()
