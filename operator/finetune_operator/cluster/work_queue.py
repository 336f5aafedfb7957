"""Jobs that wait to be looked at: each by one worker at a time, as the work queue of controller-runtime does it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

FIRST_RETRY = timedelta(milliseconds=200)
LONGEST_RETRY = timedelta(seconds=60)
BETWEEN_RECONCILES = timedelta(milliseconds=200)
"""Between the beginnings of two looks at a key, so that a pod that writes all the time does not keep the API
server busy."""


@dataclass
class _Entry:
    task: asyncio.Task[None] | None = None
    woken: bool = False
    """Something happened while it was being looked at."""
    timer: asyncio.TimerHandle | None = None
    failures: int = 0
    rested_at: float = 0.0
    """From this time of the event loop on it may be looked at."""


class WorkQueue(Generic[Key]):
    """Calls `look` for a key whenever it is woken.

    Wake-ups that come while a key is being looked at, or too soon after that, become one more look. `look`
    returns when to look again by itself (None: not before the key is woken); when it raises, it is called
    again after 0.2 s, 0.4 s, ... up to a minute.
    """

    def __init__(
        self,
        look: Callable[[Key], Awaitable[timedelta | None]],
        *,
        workers: int,
        on_error: Callable[[Key, Exception], None],
    ) -> None:
        self._look = look
        self._slots = asyncio.Semaphore(workers)
        self._on_error = on_error
        self._entries: dict[Key, _Entry] = {}
        self._closed = False

    def __len__(self) -> int:
        """Keys that wait, are being looked at, or will be by themselves."""
        return len(self._entries)

    def wake(self, key: Key) -> None:
        """Has a key looked at soon."""
        if self._closed:
            return
        entry = self._entries.setdefault(key, _Entry())
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        if entry.task is not None:
            entry.woken = True
        else:
            entry.task = asyncio.create_task(self._work(key, entry), name=f"look at {key}")

    async def close(self) -> None:
        """Ends all looks; nothing is woken any more."""
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
            await asyncio.sleep(entry.rested_at - loop.time())
            async with self._slots:
                entry.woken = False
                entry.rested_at = loop.time() + BETWEEN_RECONCILES.total_seconds()
                delay = await self._look_once(key, entry)
            again = entry.woken and entry.failures == 0
        entry.task = None
        if delay is not None:
            entry.timer = loop.call_later(delay.total_seconds(), self.wake, key)
        else:
            self._entries.pop(key, None)

    async def _look_once(self, key: Key, entry: _Entry) -> timedelta | None:
        try:
            delay = await self._look(key)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the operator, and is tried again
            self._on_error(key, error)
            entry.failures += 1
            doubled: timedelta = FIRST_RETRY * 2 ** min(entry.failures - 1, 20)
            return min(doubled, LONGEST_RETRY)
        entry.failures = 0
        return delay
