"""A work queue as controller-runtime has one: each key is reconciled by one worker at a time.

When there are more keys than workers, those that somebody waits for go first; of the others, those that
have most to show.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

from finetune_operator.cluster.turns import Turns, Waiter

Key = TypeVar("Key", bound=Hashable)

FIRST_RETRY = timedelta(milliseconds=200)
LONGEST_RETRY = timedelta(seconds=60)
BETWEEN_RECONCILES = timedelta(milliseconds=200)
"""Between the beginnings of two calls for a key, at least: a pod that writes all the time must not keep the
API server busy."""


@dataclass(eq=False)
class _Entry(Waiter):
    task: asyncio.Task[None] | None = None
    woken: bool = False
    """Whether something happened while it was being reconciled."""
    can_wait: bool = True
    """Whether nothing has happened since it was reconciled that somebody waits for."""
    timer: asyncio.TimerHandle | None = None
    failures: int = 0
    newest: float = 0.0
    """When it was woken last, by the clock of the event loop."""
    shown: float = 0.0
    """Until when all that has woken it was seen by a call."""
    not_before: float = 0.0
    """The time of the event loop from which on it may be reconciled again."""


class WorkQueue(Generic[Key]):
    """Calls `reconcile` for a key whenever it is woken.

    Wake-ups that come while a key is being reconciled, or too soon after that, become one more call.
    `reconcile` returns after which time to call it again by itself (None: not before the key is woken); when
    it raises, it is called again after 0.2 s, 0.4 s, ... up to a minute.
    """

    def __init__(
        self,
        reconcile: Callable[[Key], Awaitable[timedelta | None]],
        *,
        workers: int,
        on_error: Callable[[Key, Exception], None],
    ) -> None:
        self._reconcile = reconcile
        self._turns = Turns(workers)
        self._on_error = on_error
        self._entries: dict[Key, _Entry] = {}
        self._closed = False

    def __len__(self) -> int:
        """Keys that wait, are being reconciled, or will be by themselves."""
        return len(self._entries)

    def wake(self, key: Key, *, can_wait: bool = False) -> None:
        """Has a key reconciled soon; or, if it can wait, when there is room, which may take seconds."""
        if self._closed:
            return
        now = asyncio.get_running_loop().time()
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(shown=now)
        entry.newest = now
        if not can_wait:
            entry.can_wait = False
            self._turns.hurry(entry)
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        if entry.task is not None:
            entry.woken = True
        else:
            entry.task = asyncio.create_task(self._work(key, entry), name=f"reconcile {key}")

    def discard(self, belongs: Callable[[Key], bool]) -> None:
        """Forgets the keys that belong to what is given up; those that are being reconciled are cancelled."""
        for key in [key for key in self._entries if belongs(key)]:
            entry = self._entries.pop(key)
            if entry.timer is not None:
                entry.timer.cancel()
            if entry.task is not None:
                entry.task.cancel()

    async def close(self) -> None:
        """Cancels what is being reconciled; nothing is woken any more."""
        self._closed = True
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        for entry in self._entries.values():
            if entry.timer is not None:
                entry.timer.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._entries.clear()

    async def _work(self, key: Key, entry: _Entry) -> None:
        again = True
        delay: timedelta | None = None
        loop = asyncio.get_running_loop()
        while again:
            await asyncio.sleep(entry.not_before - loop.time())
            await self._turns.take(entry)
            went_on: list[bool] = []
            others = loop.call_soon(went_on.append, True)
            try:
                entry.woken, entry.can_wait = False, True
                entry.not_before = loop.time() + BETWEEN_RECONCILES.total_seconds()
                delay = await self._reconcile_once(key, entry)
            finally:
                others.cancel()
                self._turns.give_back(entry, waited=bool(went_on))
            again = entry.woken and entry.failures == 0
        entry.task = None
        if delay is not None:
            entry.timer = loop.call_later(delay.total_seconds(), self.wake, key)
        else:
            self._entries.pop(key, None)

    async def _reconcile_once(self, key: Key, entry: _Entry) -> timedelta | None:
        try:
            delay = await self._reconcile(key)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the operator, and is tried again
            self._on_error(key, error)
            entry.failures += 1
            doubled: timedelta = FIRST_RETRY * 2 ** min(entry.failures - 1, 20)
            return min(doubled, LONGEST_RETRY)
        entry.failures = 0
        return delay
