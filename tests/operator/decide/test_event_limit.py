"""A trainer that tells the operator something new all the time does not fill etcd with events."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from finetune_operator.decide.event_limit import BURST, REFILL, EventLimit
from finetune_operator.decide.events import Event

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SAVED = Event("Normal", "CheckpointSaved", "epoch-0")
FAILED = Event("Warning", "Failed", "InvalidSpec: no")


def test_a_burst_of_events_is_posted_and_what_is_more_is_not() -> None:
    limit = EventLimit()
    assert limit.admitted("a", [SAVED] * 1000, NOON) == [SAVED] * BURST
    assert limit.admitted("a", [SAVED], NOON) == []
    assert limit.admitted("b", [SAVED], NOON) == [SAVED], "each job has its own"


def test_turns_that_the_operator_takes_are_always_posted() -> None:
    limit = EventLimit()
    limit.admitted("a", [SAVED] * BURST, NOON)
    assert limit.admitted("a", [SAVED, FAILED], NOON) == [FAILED]


def test_there_is_one_more_after_each_refill_and_a_burst_again_after_as_many() -> None:
    limit = EventLimit()
    limit.admitted("a", [SAVED] * BURST, NOON)
    assert limit.admitted("a", [SAVED], NOON + REFILL - timedelta(milliseconds=1)) == []
    assert limit.admitted("a", [SAVED] * 2, NOON + REFILL) == [SAVED]
    assert len(limit.admitted("a", [SAVED] * 1000, NOON + (BURST + 1) * REFILL)) == BURST


def test_an_hour_of_nothing_but_events_posts_what_an_hour_may_have() -> None:
    limit = EventLimit()
    times = [NOON + timedelta(milliseconds=200) * number for number in range(18_000)]
    posted = sum(len(limit.admitted("a", [SAVED], time)) for time in times)
    assert posted == BURST + timedelta(hours=1) // REFILL - 1


def test_a_job_that_is_gone_takes_no_memory() -> None:
    limit = EventLimit()
    limit.admitted("a", [SAVED] * BURST, NOON)
    limit.forget("a")
    limit.forget("never there")
    assert limit._full_at == {}
