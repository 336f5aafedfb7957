"""A work queue as controller-runtime has one: each key is reconciled by one worker at a time.

When there are more keys than workers, those that somebody waits for go first.
"""

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
"""Between the beginnings of two calls for a key, at least: a pod that writes all the time must not keep the
API server busy."""


PATIENCE_SECONDS = 10.0
"""How long a key that can wait may be passed over by others; then it takes turns with them."""


@dataclass(eq=False)
class _Entry:
    task: asyncio.Task[None] | None = None
    woken: bool = False
    """Whether something happened while it was being reconciled."""
    can_wait: bool = True
    """Whether nothing has happened since it was reconciled that somebody waits for."""
    timer: asyncio.TimerHandle | None = None
    failures: int = 0
    not_before: float = 0.0
    """The time of the event loop from which on it may be reconciled again."""


class _Turns:
    """Lets so many entries go on at the same time; of those that wait, the ones that cannot wait first."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._urgent: dict[_Entry, asyncio.Future[None]] = {}
        self._others: dict[_Entry, tuple[asyncio.Future[None], float]] = {}
        self._other_is_next = False

    async def take(self, entry: _Entry) -> None:
        """Waits for the entry's turn, which `give_back` ends."""
        if self._free:
            self._free -= 1
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        if entry.can_wait:
            self._others[entry] = (turn, loop.time())
        else:
            self._urgent[entry] = turn
        try:
            await turn
        except asyncio.CancelledError:
            self._urgent.pop(entry, None)
            self._others.pop(entry, None)
            if turn.done() and not turn.cancelled():
                self.give_back()
            raise

    def give_back(self) -> None:
        """Ends a turn: the next one begins."""
        turn = self._next()
        while turn is not None and turn.done():  # it was cancelled
            turn = self._next()
        if turn is None:
            self._free += 1
        else:
            turn.set_result(None)

    def hurry(self, entry: _Entry) -> None:
        """Puts an entry that waits among those that cannot wait."""
        if entry in self._others:
            self._urgent[entry] = self._others.pop(entry)[0]

    def _next(self) -> asyncio.Future[None] | None:
        other = next(iter(self._others), None)
        overdue = other is not None and (
            asyncio.get_running_loop().time() - self._others[other][1] > PATIENCE_SECONDS
        )
        if self._urgent and not (overdue and self._other_is_next):
            self._other_is_next = True
            return self._urgent.pop(next(iter(self._urgent)))
        self._other_is_next = False
        return self._others.pop(other)[0] if other is not None else None


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
        self._turns = _Turns(workers)
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
        entry = self._entries.setdefault(key, _Entry())
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
            try:
                entry.woken, entry.can_wait = False, True
                entry.not_before = loop.time() + BETWEEN_RECONCILES.total_seconds()
                delay = await self._reconcile_once(key, entry)
            finally:
                self._turns.give_back()
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
