"""Which failures are tried again, and when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from finetune_api.failure import FailureClass
from finetune_api.status import Failure
from finetune_operator.decide.attempts import is_retried, next_attempt_at

ENDED = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("failure_class", FailureClass)
def test_only_a_lost_node_and_storage_are_tried_again(failure_class: FailureClass) -> None:
    expected = failure_class in ("NodeLost", "StorageError")
    assert is_retried(Failure(failure_class=failure_class, message=""), 1, 3) is expected


@pytest.mark.parametrize(("limit", "attempts"), [(0, 1), (1, 2), (3, 4)])
def test_as_many_attempts_follow_the_first_as_the_limit_says(limit: int, attempts: int) -> None:
    failure = Failure(failure_class=FailureClass.NODE_LOST, message="")
    assert [is_retried(failure, attempt, limit) for attempt in range(1, attempts + 1)] == [True] * (
        attempts - 1
    ) + [False]


@pytest.mark.parametrize(
    ("attempt", "seconds"),
    [(1, 10), (2, 20), (3, 40), (4, 80), (5, 160), (6, 320), (7, 360), (8, 360), (100, 360), (10**6, 360)],
)
def test_waiting_time_doubles_up_to_six_minutes(attempt: int, seconds: int) -> None:
    assert next_attempt_at(ENDED, attempt) - ENDED == timedelta(seconds=seconds)
