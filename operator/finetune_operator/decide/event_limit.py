"""How many events a job may cause: its trainer's reports become events, and a user may run any trainer."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from finetune_operator.decide.events import Event, Reason

OF_THE_TRAINER: frozenset[Reason] = frozenset(("CheckpointSaved", "NewBest", "RecordInvalid"))
"""Those that a trainer can cause as often as it likes. The others are decisions of this operator."""
BURST = 100
REFILL = timedelta(seconds=10)
"""A job may cause `BURST` events at once, and one more after each `REFILL`: about as many as there are of an
hour, after which Kubernetes deletes events."""


class EventLimit:
    """A bucket of events for each job, as client-go's event recorder has one for each object."""

    def __init__(self) -> None:
        self._full_at: dict[str, datetime] = {}

    def admitted(self, uid: str, events: Sequence[Event], now: datetime) -> list[Event]:
        """The events about the job that are to be posted now."""
        return [event for event in events if event.reason not in OF_THE_TRAINER or self._take(uid, now)]

    def forget(self, uid: str) -> None:
        """Drops what is remembered of a job that is gone."""
        self._full_at.pop(uid, None)

    def _take(self, uid: str, now: datetime) -> bool:
        # A bucket is known by when it will be full again, one refill later for each event that is taken (the
        # GCRA).
        full_at = max(self._full_at.get(uid, now), now) + REFILL
        if full_at - now > BURST * REFILL:
            return False
        self._full_at[uid] = full_at
        return True
