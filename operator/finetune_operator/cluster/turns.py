"""Whose turn it is when there is more to do than can be done at the same time.

What somebody waits for goes first. What can wait gets as much room as the API server has to spare: when
calls for it take longer, fewer of them are made at the same time. That is how TCP Vegas finds its window
(Brakmo and Peterson, 1995), by the time that an answer takes, and not by what is lost.
"""

from __future__ import annotations

import asyncio
import math

PATIENCE_SECONDS = 10.0
"""How long what can wait may be passed over by others; then it takes turns with them."""
SLOW = 3.0
"""How many times the shortest time a call may take until it is a sign that calls wait for each other."""
FORGETS = 1.001
"""By how much each call raises what counts as the shortest time: it may be another server meanwhile."""


class Waiter:
    """One that takes turns, one at a time."""

    can_wait: bool = True
    """Whether nobody waits for what its next turn does."""


class Room:
    """How much that can wait is done at the same time: from 1 to `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._room = 1.0
        self._shortest = math.inf

    def __int__(self) -> int:
        return int(self._room)

    def took(self, seconds: float, *, full: bool) -> None:
        """Notes how long a turn has taken, and whether all room was taken meanwhile."""
        self._shortest = min(seconds, self._shortest * FORGETS)
        if seconds > SLOW * self._shortest:
            self._room = max(1.0, self._room - 1 / self._room)
        elif full:
            self._room = min(self._most, self._room + 1 / self._room)


class Turns:
    """Lets so many go on at the same time; of those that wait, the ones that cannot wait first."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._urgent: dict[Waiter, asyncio.Future[None]] = {}
        self._others: dict[Waiter, tuple[asyncio.Future[None], float]] = {}
        self._other_is_next = False
        self._room = Room(slots)
        self._under_way: dict[Waiter, float] = {}
        """Turns of those that could wait, and when each began."""

    async def take(self, waiter: Waiter) -> None:
        """Waits for a turn, which `give_back` ends."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if waiter.can_wait:
            self._others[waiter] = (turn, _now())
        else:
            self._urgent[waiter] = turn
        self._go_on()
        try:
            await turn
        except asyncio.CancelledError:
            self._urgent.pop(waiter, None)
            self._others.pop(waiter, None)
            self._under_way.pop(waiter, None)
            if turn.done() and not turn.cancelled():
                self._free += 1
            self._go_on()
            raise

    def give_back(self, waiter: Waiter) -> None:
        """Ends a turn: the next one begins."""
        full = len(self._under_way) >= int(self._room)
        began = self._under_way.pop(waiter, None)
        if began is not None:
            self._room.took(_now() - began, full=full)
        self._free += 1
        self._go_on()

    def hurry(self, waiter: Waiter) -> None:
        """Puts one that waits among those that cannot wait."""
        if waiter in self._others:
            self._urgent[waiter] = self._others.pop(waiter)[0]
            self._go_on()

    def _go_on(self) -> None:
        while self._free and (turn := self._next()) is not None:
            if not turn.done():  # else it was cancelled
                turn.set_result(None)
                self._free -= 1

    def _next(self) -> asyncio.Future[None] | None:
        other = next(iter(self._others), None) if len(self._under_way) < int(self._room) else None
        overdue = other is not None and _now() - self._others[other][1] > PATIENCE_SECONDS
        if self._urgent and not (overdue and self._other_is_next):
            self._other_is_next = overdue
            return self._urgent.pop(next(iter(self._urgent)))
        self._other_is_next = False
        if other is None:
            return None
        self._under_way[other] = _now()
        return self._others.pop(other)[0]


def _now() -> float:
    return asyncio.get_running_loop().time()
