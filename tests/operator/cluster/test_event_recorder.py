"""Events are posted beside everything else, in their order, and whatever becomes of one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import REGISTRY

from finetune_operator.cluster import event_recorder
from finetune_operator.cluster.event_recorder import EventRecorder
from finetune_operator.cluster.kubernetes_api import ApiUnreachableError
from finetune_operator.decide import event_limit
from finetune_operator.decide.events import Event
from finetune_operator.observed import ObjectMeta

JOB = ObjectMeta(name="job", namespace="team", uid="uid")
ACCEPTED = Event("Normal", "Accepted", "two workers")
RUNNING = Event("Normal", "Running", "training began")
SAVED = Event("Normal", "CheckpointSaved", "epoch-0")
NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


class Server:
    """Takes events when the test lets it."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, datetime]] = []
        self.under_way = 0
        self.most = 0
        self.gate = asyncio.Event()
        self.refused: dict[str, Exception] = {}

    async def post(self, job: ObjectMeta, event: Event, at: datetime) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await self.gate.wait()
        self.under_way -= 1
        if event.reason in self.refused:
            raise self.refused[event.reason]
        self.posted.append((f"{job.name} {event.reason}", at))


def lost() -> float:
    return REGISTRY.get_sample_value("finetune_events_lost_total") or 0.0


@contextmanager
def losing(count: int) -> Iterator[None]:
    """So many events are lost inside the block."""
    before = lost()
    yield
    assert lost() == before + count


def test_nothing_waits_for_events_which_are_posted_one_at_a_time_in_their_order() -> None:
    async def record() -> None:
        server = Server()
        recorder = EventRecorder(server.post)
        recorder.record(JOB, [ACCEPTED, RUNNING], NOW)
        recorder.record(JOB, [SAVED], NOW + timedelta(seconds=1))
        await asyncio.sleep(0)
        assert (server.posted, server.under_way) == ([], 1)

        server.gate.set()
        await recorder.posted()

        assert server.posted == [
            ("job Accepted", NOW),
            ("job Running", NOW),
            ("job CheckpointSaved", NOW + timedelta(seconds=1)),
        ]
        assert server.most == 1
        recorder.record(JOB, [RUNNING], NOW)
        await recorder.posted()
        assert len(server.posted) == 4

    asyncio.run(record())


@pytest.mark.parametrize("error", [ApiUnreachableError("no answer"), ValueError("what nobody thought of")])
def test_an_event_that_cannot_be_posted_is_counted_and_the_next_one_is(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def record() -> None:
        server = Server()
        server.gate.set()
        server.refused["Accepted"] = error
        recorder = EventRecorder(server.post)
        recorder.record(JOB, [ACCEPTED, RUNNING], NOW)
        await recorder.posted()
        assert server.posted == [("job Running", NOW)]

    with losing(1):
        asyncio.run(record())

    assert f"the event Accepted could not be posted: {error}" in caplog.text


def test_there_is_a_bound_on_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_recorder, "MOST_WAITING", 2)

    async def record() -> None:
        server = Server()
        recorder = EventRecorder(server.post)
        recorder.record(JOB, [ACCEPTED, RUNNING, SAVED], NOW)
        server.gate.set()
        await recorder.posted()
        assert [what for what, _ in server.posted] == ["job Accepted", "job Running"]

    with losing(1):
        asyncio.run(record())


def test_a_job_may_not_cause_any_number_of_them_until_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_limit, "BURST", 1)

    async def record() -> None:
        server = Server()
        server.gate.set()
        recorder = EventRecorder(server.post)
        recorder.record(JOB, [SAVED, SAVED], NOW)
        recorder.forget("uid")
        recorder.record(JOB, [SAVED], NOW)
        await recorder.posted()
        assert len(server.posted) == 2

    with losing(1):
        asyncio.run(record())


@pytest.mark.parametrize(("answers", "posted"), [(True, 2), (False, 0)])
def test_an_operator_that_ends_posts_what_waits_but_not_for_ever(
    answers: bool, posted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_recorder, "LAST_SECONDS", 0.05)

    async def record() -> None:
        server = Server()
        recorder = EventRecorder(server.post)
        recorder.record(JOB, [ACCEPTED, RUNNING], NOW)
        await asyncio.sleep(0)
        if answers:
            server.gate.set()
        await recorder.close()
        assert len(server.posted) == posted

    with losing(2 - posted):
        asyncio.run(record())
