"""Who goes on when not all can: what somebody waits for first, what can wait as the API server has room."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Coroutine, Iterable, Sequence
from datetime import timedelta
from typing import TypeVar

import pytest

from finetune_operator.cluster.turns import LONG_SECONDS, OLD_SECONDS, Room, Turns, Waiter
from finetune_operator.cluster.work_queue import WorkQueue

Result = TypeVar("Result")

EVERY_SECOND = 2 * 10 + LONG_SECONDS + 1
"""Seconds; the greatest age where every second report is shown soon, of those that come each 10 s."""


def test_room_grows_while_calls_take_no_longer() -> None:
    room = Room(most=3)
    found = [int(room)]

    for _ in range(10):
        room.took(0.02, full=True)
        found.append(int(room))

    assert found[:3] == [1, 2, 2]
    assert found[-1] == 3, "and not more than there may be"


def test_room_shrinks_to_one_while_calls_wait_for_each_other() -> None:
    room = Room(most=32)
    for _ in range(100):
        room.took(0.02, full=True)
    assert int(room) > 10

    for _ in range(200):
        room.took(0.2, full=True)

    assert int(room) == 1


def test_room_that_nobody_takes_does_not_grow() -> None:
    room = Room(most=32)

    for _ in range(100):
        room.took(0.02, full=False)

    assert int(room) == 1


def test_a_server_that_stays_slower_gets_room_again() -> None:
    room = Room(most=32)
    for _ in range(100):
        room.took(0.02, full=True)
    for _ in range(200):
        room.took(0.2, full=True)

    for _ in range(3000):
        room.took(0.2, full=True)

    assert int(room) > 10


def test_what_can_wait_takes_one_slot_at_first_and_what_cannot_takes_all() -> None:
    async def taken(*, can_wait: bool) -> int:
        turns = Turns(slots=4)
        waiters = [Waiter() for _ in range(6)]
        for waiter in waiters:
            waiter.can_wait = can_wait
        tasks = [asyncio.create_task(turns.take(waiter)) for waiter in waiters]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        done = sum(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return done

    assert asyncio.run(taken(can_wait=True)) == 1
    assert asyncio.run(taken(can_wait=False)) == 4


def test_what_can_wait_leaves_slots_to_what_cannot() -> None:
    async def story() -> None:
        turns = Turns(slots=2)
        numbers, phase = Waiter(), Waiter()
        phase.can_wait = False
        await turns.take(numbers)
        await asyncio.wait_for(turns.take(phase), 1)
        turns.give_back(phase)
        turns.give_back(numbers)

    asyncio.run(story())


def test_one_that_is_cancelled_while_its_turn_begins_takes_no_room_with_it() -> None:
    async def story() -> None:
        turns = Turns(slots=1)
        first, gone, stays = Waiter(), Waiter(), Waiter()
        await turns.take(first)
        going = asyncio.create_task(turns.take(gone))
        staying = asyncio.create_task(turns.take(stays))
        await asyncio.sleep(0)
        going.cancel()
        turns.give_back(first)
        await asyncio.wait_for(staying, 1)
        turns.give_back(stays)
        await asyncio.wait_for(turns.take(first), 1)

    asyncio.run(story())


def order_of(waiters: Sequence[Waiter], *, now: float) -> list[int]:
    """In which order those that wait have their turns, one at a time."""
    found: list[int] = []

    async def story() -> None:
        loop.time = lambda: now  # type: ignore[method-assign]
        turns, first = Turns(slots=1), Waiter()
        first.can_wait = False
        await turns.take(first)
        tasks = [asyncio.create_task(one(turns, number)) for number in range(len(waiters))]
        await asyncio.sleep(0)
        turns.give_back(first)
        await asyncio.gather(*tasks)

    async def one(turns: Turns, number: int) -> None:
        await turns.take(waiters[number])
        found.append(number)
        turns.give_back(waiters[number])

    loop = asyncio.new_event_loop()
    loop.run_until_complete(story())
    loop.close()
    return found


def waiter(*, shown: float, newest: float) -> Waiter:
    made = Waiter()
    made.shown, made.newest = shown, newest
    return made


def test_the_turn_that_makes_what_is_shown_younger_by_most_is_first() -> None:
    reported_once_again = waiter(shown=89, newest=99)
    just_shown = waiter(shown=98, newest=99)
    reported_twice = waiter(shown=79, newest=99)

    assert order_of([reported_once_again, just_shown, reported_twice], now=99.5) == [2, 0, 1]


def test_of_turns_that_do_as_much_the_first_to_come_is_first_while_none_waits_for_long() -> None:
    waiters = [waiter(shown=80 + later, newest=90 + later) for later in (0.2, 0, 0.1)]

    assert order_of(waiters, now=90.5) == [1, 2, 0]


def test_where_all_have_waited_for_long_the_last_to_come_is_first() -> None:
    waiters = [waiter(shown=80 + later, newest=90 + later) for later in (0.2, 0, 0.1)]

    assert order_of(waiters, now=95) == [0, 2, 1]


def test_one_of_which_a_report_was_not_shown_is_before_those_that_come_in_order() -> None:
    on_its_way = waiter(shown=80, newest=90)
    not_shown = waiter(shown=71.8, newest=91.8)

    assert order_of([on_its_way, not_shown], now=91.9) == [1, 0]


def test_what_is_old_is_renewed_before_all_else_however_little_younger_it_becomes() -> None:
    silent = waiter(shown=100 - OLD_SECONDS - 1, newest=80)
    older = waiter(shown=100 - OLD_SECONDS - 2, newest=79)
    reported = waiter(shown=100 - OLD_SECONDS + 1, newest=100)

    assert order_of([reported, silent, older], now=100) == [2, 1, 0]


def test_a_turn_shows_all_until_it_begins_and_the_next_what_has_come_since() -> None:
    one = waiter(shown=70, newest=90)

    order_of([one], now=90)
    one.newest = 95.0

    assert (one.shown, one.gain) == (90, 5)


class Ages:
    """What a queue shows of jobs that report, on an API server that takes so many numbers a second."""

    def __init__(self, jobs: int, shown_a_second: float) -> None:
        self.oldest = 0.0
        """The greatest age of what was shown, from the second minute on."""
        self.lags: list[float] = []
        """How old what was shown was then."""
        self.shown = [0.0] * jobs
        """When each job had reported what is shown of it."""
        self._reported = [0.0] * jobs
        self._seconds = 1 / shown_a_second
        self._server = asyncio.Lock()
        self._queue = WorkQueue(self._show, workers=32, on_error=lambda _, error: pytest.fail(repr(error)))

    async def _show(self, job: int) -> timedelta:
        reported, loop = self._reported[job], asyncio.get_running_loop()
        async with self._server:
            await asyncio.sleep(self._seconds * random.uniform(0.5, 1.5))
        if loop.time() > 60:
            self.oldest = max(self.oldest, loop.time() - self.shown[job])
            self.lags.append(loop.time() - reported)
        self.shown[job] = reported
        return timedelta(hours=1)

    async def report(self, job: int, times: Iterable[float]) -> None:
        loop = asyncio.get_running_loop()
        for each in times:
            await asyncio.sleep(each - loop.time())
            self._reported[job] = loop.time()
            self._queue.wake(job, can_wait=True)

    async def end(self) -> None:
        await self._queue.close()
        now = asyncio.get_running_loop().time()
        self.oldest = max(self.oldest, *(now - shown for shown in self.shown))


class TimeThatPassesAtOnce(selectors.SelectSelector):
    """Waits for no time, and counts it."""

    seconds = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.seconds += timeout or 0.0
        return super().select(0)


def in_no_time(story: Coroutine[None, None, Result]) -> Result:
    selector = TimeThatPassesAtOnce()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.seconds  # type: ignore[method-assign]
    try:
        return loop.run_until_complete(story)
    finally:
        loop.close()


def ages(jobs: Sequence[Iterable[float]], *, shown_a_second: float) -> Ages:
    """What comes of jobs that report at these times, after two minutes."""

    async def story() -> Ages:
        found = Ages(len(jobs), shown_a_second)
        await asyncio.gather(*(found.report(number, times) for number, times in enumerate(jobs)))
        await found.end()
        return found

    return in_no_time(story())


def every(seconds: float, jobs: int) -> list[list[float]]:
    """When jobs report that do so about once in so many seconds."""
    random.seed(jobs)
    found = []
    for _ in range(jobs):
        times = [seconds * random.random()]
        while times[-1] < 120:
            times.append(times[-1] + seconds + random.uniform(-0.1, 0.1))
        found.append(times[:-1])
    return found


def test_with_room_for_all_numbers_each_is_shown_at_once() -> None:
    found = ages(every(10, jobs=150), shown_a_second=20)

    assert found.oldest < 11
    assert max(found.lags) < 1


def test_with_room_for_more_than_half_of_the_numbers_every_second_one_is_shown_soon() -> None:
    """One that is younger than 20 s is only there where every report is shown."""
    found = ages(every(10, jobs=300), shown_a_second=18)

    assert found.oldest < EVERY_SECOND, "in the order of arrival it is 27 s"
    assert max(found.lags) < 2 * LONG_SECONDS, "in the order of arrival it is 10 s, and 5 s for most"


def test_with_room_for_fewer_all_grow_old_alike() -> None:
    found = ages(every(10, jobs=300), shown_a_second=12)

    assert 300 / 12 < found.oldest < 300 / 12 + 11, "the time of a turn each, and what is reported meanwhile"


def test_who_reports_all_the_time_takes_no_turns_from_others() -> None:
    found = ages(every(0.3, jobs=30) + every(10, jobs=270), shown_a_second=18)

    assert found.oldest < EVERY_SECOND


def test_who_falls_silent_with_little_to_show_has_a_turn_as_well() -> None:
    found = ages([[60, 65], *every(10, jobs=300)], shown_a_second=18)

    assert found.shown[0] == 65
    assert 10 < max(found.lags) < OLD_SECONDS


def test_turns_that_ask_nobody_say_nothing_of_how_fast_answers_are() -> None:
    async def most_at_once(*, ask_nobody: int) -> int:
        at_once, most = 0, 0

        async def call(key: int) -> None:
            nonlocal at_once, most
            if key < ask_nobody:
                return
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0.02)
            at_once -= 1

        queue = WorkQueue(call, workers=8, on_error=lambda _, error: pytest.fail(repr(error)))
        for key in range(200):
            queue.wake(key, can_wait=True)
        while len(queue):
            await asyncio.sleep(0.1)
        return most

    assert in_no_time(most_at_once(ask_nobody=0)) == 8
    assert in_no_time(most_at_once(ask_nobody=10)) == 8
