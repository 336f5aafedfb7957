"""Whose turn it is when there is more to do than can be done at the same time.

What somebody waits for goes first. What can wait gets as much room as the API server has to spare: when
calls for it take longer, fewer of them are made at the same time. That is how TCP Vegas finds its window
(Brakmo and Peterson, 1995), by the time that an answer takes, and not by what is lost. Of those that can wait
the one goes first whose turn makes what is shown younger by most, which keeps the ages of all of them low
(Kadota and Modiano, Minimizing the Age of Information in Wireless Networks with Stochastic Arrivals, 2019).
So with jobs that report every ten seconds, and half of the turns that they would need, each of them has its
turn after every second report, soon; and not after each in its order, seconds late.

Of those whose turns do about as much, the first to come goes first, which is right where all wait for a
moment; and where they wait for long, the last to come, so that most are on time and not all of them late (the
adaptive LIFO of Maurer, Fail at Scale, 2015).
"""

from __future__ import annotations

import asyncio
import math
from functools import partial
from operator import attrgetter

OLD_SECONDS = 22.0
"""From which age on what is shown is renewed first, the oldest of all, and takes turns with what cannot wait:
after two reports of a trainer that reports every ten seconds, and a moment."""
LONG_SECONDS = 2.0
"""For how long one waits until those that come after it go before it."""
WAIT_COUNTS = 0.5
"""What a second of waiting counts beside one by which a turn makes what is shown younger. So of trainers that
report at about the same intervals order is by arrival, and one of which a report was not shown goes first."""
SLOW = 5.0
"""How many times the shortest time a call may take until it is a sign that calls wait for each other."""
FORGETS = 1.001
"""By how much each call raises what counts as the shortest time: it may be another server meanwhile."""


class Waiter:
    """One that takes turns, one at a time."""

    can_wait: bool = True
    """Whether nobody waits for what its next turn does."""
    newest: float = 0.0
    """When the last thing has happened that its next turn shows, by the clock of the event loop."""
    shown: float = 0.0
    """The same of its last turn; before that, since when there is something to show."""

    @property
    def gain(self) -> float:
        """By how many seconds its next turn makes what is shown younger."""
        return self.newest - self.shown


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
        self._others: dict[Waiter, asyncio.Future[None]] = {}
        self._other_is_next = False
        self._room = Room(slots)
        self._under_way: dict[Waiter, float] = {}
        """Turns of those that could wait, and when each began."""

    async def take(self, waiter: Waiter) -> None:
        """Waits for a turn, which `give_back` ends."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if waiter.can_wait:
            self._others[waiter] = turn
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

    def give_back(self, waiter: Waiter, *, waited: bool = True) -> None:
        """Ends a turn: the next one begins. The room depends on those that have `waited` for an answer."""
        full = len(self._under_way) >= int(self._room)
        began = self._under_way.pop(waiter, None)
        if began is not None and waited:
            self._room.took(_now() - began, full=full)
        self._free += 1
        self._go_on()

    def hurry(self, waiter: Waiter) -> None:
        """Puts one that waits among those that cannot wait."""
        if waiter in self._others:
            self._urgent[waiter] = self._others.pop(waiter)
            self._go_on()

    def _go_on(self) -> None:
        while self._free and (turn := self._next()) is not None:
            if not turn.done():  # else it was cancelled
                turn.set_result(None)
                self._free -= 1

    def _next(self) -> asyncio.Future[None] | None:
        other = self._other()
        is_old = other is not None and _is_old(other)
        if self._urgent and not (is_old and self._other_is_next):
            self._other_is_next = is_old
            waiter = next(iter(self._urgent))
            turn = self._urgent.pop(waiter)
        else:
            self._other_is_next = False
            if other is None:
                return None
            waiter = other
            turn = self._others.pop(waiter)
            self._under_way[waiter] = _now()
        waiter.shown = waiter.newest
        return turn

    def _other(self) -> Waiter | None:
        """Which of those that can wait is next, if there is room for one."""
        if not self._others or len(self._under_way) >= int(self._room):
            return None
        oldest = min(self._others, key=_SHOWN)
        return oldest if _is_old(oldest) else max(self._others, key=partial(_worth, _now()))


_SHOWN = attrgetter("shown")


def _worth(now: float, waiter: Waiter) -> float:
    waits = now - waiter.newest
    return waiter.gain + WAIT_COUNTS * (waits if waits < LONG_SECONDS else -waits)


def _is_old(waiter: Waiter) -> bool:
    return _now() - waiter.shown > OLD_SECONDS


def _now() -> float:
    return asyncio.get_running_loop().time()
