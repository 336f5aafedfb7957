"""Posts events about jobs beside all else, as client-go's event recorder does: nothing waits for them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import datetime

from finetune_operator.decide.event_limit import EventLimit
from finetune_operator.decide.events import Event
from finetune_operator.observed import ObjectMeta
from finetune_operator.telemetry.logs import job_logger
from finetune_operator.telemetry.metrics import EVENTS_LOST

MOST_WAITING = 10_000
"""Events that wait, at most: a thousand jobs at once have two each."""
LAST_SECONDS = 5.0
"""For how long what waits is posted when the operator ends."""

Post = Callable[[ObjectMeta, Event, datetime], Awaitable[None]]


class EventRecorder:
    """Posts events in their order, one at a time: so they take little of what the API server has for others.

    `post` takes a job, an event and when it happened.
    """

    def __init__(self, post: Post) -> None:
        self._post = post
        self._limit = EventLimit()
        self._waiting: deque[tuple[ObjectMeta, Event, datetime]] = deque()
        self._posting: asyncio.Task[None] | None = None

    def record(self, job: ObjectMeta, events: Sequence[Event], now: datetime) -> None:
        """Logs the events, and has as many of them posted as the job may cause."""
        admitted = self._limit.admitted(job.uid, events, now)[: MOST_WAITING - len(self._waiting)]
        if len(admitted) < len(events):
            EVENTS_LOST.inc(len(events) - len(admitted))
            job_logger(job).warning(
                "%d events are not posted: there are too many", len(events) - len(admitted)
            )
        for event in admitted:
            job_logger(job).info("%s: %s", event.reason, event.message)
            self._waiting.append((job, event, now))
        if self._waiting and self._posting is None:
            self._posting = asyncio.create_task(self._post_all(), name="events")

    def forget(self, uid: str) -> None:
        """Drops what is remembered of a job that is gone."""
        self._limit.forget(uid)

    async def posted(self) -> None:
        """Waits until all events are posted, or lost."""
        while self._posting is not None:
            await asyncio.wait([self._posting])

    async def close(self) -> None:
        """Posts what waits, as far as that takes no longer than `LAST_SECONDS`."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.posted(), LAST_SECONDS)
        if self._posting is not None:
            self._posting.cancel()
        EVENTS_LOST.inc(len(self._waiting))
        self._waiting.clear()

    async def _post_all(self) -> None:
        try:
            while self._waiting:
                job, event, at = self._waiting[0]
                try:
                    await self._post(job, event, at)
                except Exception as error:  # noqa: BLE001 - nothing depends on an event, and the next one is posted
                    EVENTS_LOST.inc()
                    job_logger(job).warning("the event %s could not be posted: %s", event.reason, error)
                self._waiting.popleft()
        finally:
            self._posting = None
