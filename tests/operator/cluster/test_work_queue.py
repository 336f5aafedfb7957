"""When keys are reconciled: each by one worker at a time, none lost, none twice, and errors with back-off."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import wraps

import pytest

from finetune_operator.cluster import turns, work_queue
from finetune_operator.cluster.work_queue import WorkQueue

SECONDS = 5
"""Until a test that hangs ends."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries after 1 ms, 2 ms, ... 8 ms, and no rest."""
    monkeypatch.setattr(work_queue, "BETWEEN_RECONCILES", timedelta())
    monkeypatch.setattr(work_queue, "FIRST_RETRY", timedelta(milliseconds=1))
    monkeypatch.setattr(work_queue, "LONGEST_RETRY", timedelta(milliseconds=8))


def in_a_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Runs an asynchronous test, with an end."""

    @wraps(test)
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), SECONDS))

    return run


class Calls:
    """Stands for the controller: notes its calls, and lets none end before the test says so."""

    def __init__(self, workers: int = 10) -> None:
        self.begun: list[str] = []
        self.at_once: Counter[str] = Counter()
        self.most_of_one: Counter[str] = Counter()
        self.most = 0
        self.gate = asyncio.Event()
        self.answers: list[timedelta | Exception | None] = []
        """What the next calls end with; None when nothing is left."""
        self.errors: list[tuple[str, Exception]] = []
        self.queue = WorkQueue(
            self.reconcile, workers=workers, on_error=lambda key, error: self.errors.append((key, error))
        )

    async def reconcile(self, key: str) -> timedelta | None:
        self.begun.append(key)
        self.at_once[key] += 1
        self.most_of_one[key] = max(self.most_of_one[key], self.at_once[key])
        self.most = max(self.most, self.at_once.total())
        try:
            await self.gate.wait()
        finally:
            self.at_once[key] -= 1
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def times(self, count: int) -> None:
        """Waits until so many calls have begun."""
        while len(self.begun) < count:
            await asyncio.sleep(0.0005)

    async def idle(self) -> None:
        """Waits until nothing is being reconciled or waits for it."""
        while len(self.queue):
            await asyncio.sleep(0.0005)

    async def still(self) -> None:
        """Lets everything that can happen happen."""
        for _ in range(20):
            await asyncio.sleep(0)


@in_a_loop
async def test_a_key_has_one_worker_at_a_time_and_one_more_call_after_all_that_woke_it_meanwhile() -> None:
    calls = Calls()
    calls.queue.wake("a")
    await calls.times(1)

    for _ in range(100):
        calls.queue.wake("a")
        await calls.still()
    assert calls.begun == ["a"]
    calls.gate.set()
    await calls.idle()

    assert calls.begun == ["a", "a"]
    assert calls.most_of_one == {"a": 1}


@in_a_loop
async def test_what_wakes_a_key_before_it_is_reconciled_is_one_call() -> None:
    calls = Calls()
    calls.gate.set()

    for _ in range(100):
        calls.queue.wake("a")
    await calls.idle()

    assert calls.begun == ["a"]


@in_a_loop
async def test_different_keys_are_reconciled_at_the_same_time_up_to_the_number_of_workers() -> None:
    calls = Calls(workers=3)
    for number in range(20):
        calls.queue.wake(f"job {number}")
    await calls.times(3)
    await calls.still()

    assert len(calls.begun) == 3
    assert len(calls.queue) == 20
    calls.gate.set()
    await calls.idle()

    assert calls.most == 3
    assert sorted(calls.begun) == sorted(f"job {number}" for number in range(20)), "each once"


@in_a_loop
async def test_a_key_that_waits_for_a_worker_is_not_reconciled_twice_for_being_woken_meanwhile() -> None:
    calls = Calls(workers=1)
    calls.queue.wake("first")
    await calls.times(1)
    for _ in range(10):
        calls.queue.wake("second")
        await calls.still()

    calls.gate.set()
    await calls.idle()

    assert calls.begun == ["first", "second"]


@in_a_loop
async def test_a_key_that_is_woken_all_the_time_does_not_keep_the_worker_from_others() -> None:
    calls = Calls(workers=1)
    calls.gate.set()

    async def reconcile(key: str) -> None:
        calls.begun.append(key)
        await asyncio.sleep(0)
        if key == "busy" and len(calls.begun) < 1000:
            calls.queue.wake("busy")

    calls.queue = WorkQueue(reconcile, workers=1, on_error=lambda *_: None)
    calls.queue.wake("busy")
    calls.queue.wake("patient")
    await calls.idle()

    assert calls.begun.index("patient") < 10
    assert len(calls.begun) >= 1000


@in_a_loop
async def test_a_key_that_is_woken_all_the_time_is_seldom_reconciled_and_once_after_the_last_wake() -> None:
    work_queue.BETWEEN_RECONCILES = timedelta(milliseconds=50)
    calls = Calls()
    calls.gate.set()
    loop = asyncio.get_running_loop()
    calls.answers = [timedelta(hours=1)] * 1000
    begun = loop.time()
    calls.queue.wake("a")
    await calls.times(1)

    while loop.time() - begun < 0.22:
        calls.queue.wake("a")
        await asyncio.sleep(0.001)
    seen = len(calls.begun)
    calls.queue.wake("a")
    await asyncio.sleep(0.11)

    assert seen <= 5
    assert len(calls.begun) == seen + 1
    await calls.queue.close()


@in_a_loop
async def test_the_first_call_does_not_wait_and_a_key_that_rests_keeps_no_worker_from_others() -> None:
    work_queue.BETWEEN_RECONCILES = timedelta(hours=1)
    calls = Calls(workers=1)
    calls.gate.set()
    calls.answers = [timedelta(hours=1), None]
    calls.queue.wake("rests")
    await calls.times(1)
    await calls.still()
    calls.queue.wake("rests")
    await calls.still()

    calls.queue.wake("other")
    await calls.times(2)

    assert calls.begun == ["rests", "other"]
    await calls.queue.close()


@in_a_loop
async def test_an_error_is_reported_and_the_key_reconciled_again_later_and_later() -> None:
    calls = Calls()
    calls.gate.set()
    calls.answers = [OSError(str(number)) for number in range(7)]
    delays: list[float] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def noted(delay: float, *arguments: object) -> asyncio.TimerHandle:
        delays.append(delay)
        return call_later(delay, *arguments)  # type: ignore[arg-type]

    loop.call_later = noted  # type: ignore[assignment, method-assign]
    calls.queue.wake("a")
    await calls.times(8)

    assert [(key, str(error)) for key, error in calls.errors] == [("a", str(number)) for number in range(7)]
    assert [delay for delay in delays if delay >= 0.001][:7] == [
        0.001,
        0.002,
        0.004,
        0.008,
        0.008,
        0.008,
        0.008,
    ]
    await calls.idle()


@in_a_loop
async def test_after_a_success_the_first_retry_is_soon_again() -> None:
    calls = Calls()
    calls.gate.set()
    calls.answers = [OSError(), OSError(), OSError(), None]
    calls.queue.wake("a")
    await calls.idle()

    calls.answers = [OSError()]
    calls.queue.wake("a")
    while not calls.queue._entries["a"].failures:
        await asyncio.sleep(0)

    assert calls.queue._entries["a"].failures == 1
    await calls.idle()
    assert len(calls.begun) == 6


@in_a_loop
async def test_wakes_during_a_call_that_fails_do_not_shorten_the_wait() -> None:
    calls = Calls()
    calls.answers = [OSError()]
    calls.queue.wake("a")
    await calls.times(1)
    calls.queue.wake("a")
    calls.gate.set()
    await calls.still()

    assert calls.begun == ["a"]
    await calls.idle()
    assert calls.begun == ["a", "a"]


@in_a_loop
async def test_a_key_that_failed_does_not_keep_the_worker_from_others() -> None:
    work_queue.FIRST_RETRY = timedelta(milliseconds=400)
    calls = Calls(workers=1)
    calls.gate.set()
    calls.answers = [OSError()]
    calls.queue.wake("broken")
    await calls.times(1)
    await calls.still()
    calls.queue.wake("well")
    await calls.still()

    assert calls.begun[:2] == ["broken", "well"]
    await calls.idle()


@in_a_loop
async def test_a_key_is_reconciled_again_by_itself_after_the_time_that_the_call_returned() -> None:
    calls = Calls()
    calls.gate.set()
    calls.answers = [timedelta(milliseconds=2), timedelta(milliseconds=2), None]

    calls.queue.wake("a")
    await calls.idle()

    assert calls.begun == ["a", "a", "a"]


@in_a_loop
async def test_a_wake_takes_the_place_of_the_call_that_was_planned() -> None:
    calls = Calls()
    calls.gate.set()
    calls.answers = [timedelta(milliseconds=20), timedelta(hours=1)]
    calls.queue.wake("a")
    await calls.times(1)
    await calls.still()

    calls.queue.wake("a")
    await calls.times(2)
    await asyncio.sleep(0.04)

    assert calls.begun == ["a", "a"], "nothing is left of the plan"
    await calls.queue.close()


@in_a_loop
async def test_what_woke_a_key_during_a_call_comes_before_what_the_call_planned() -> None:
    calls = Calls()
    calls.answers = [timedelta(hours=1), None]
    calls.queue.wake("a")
    await calls.times(1)
    calls.queue.wake("a")
    calls.gate.set()

    await calls.idle()

    assert calls.begun == ["a", "a"]


@in_a_loop
async def test_a_closed_queue_ends_calls_and_begins_none() -> None:
    calls = Calls(workers=2)
    calls.answers = [timedelta(milliseconds=1)]
    for key in ("a", "b", "waits"):
        calls.queue.wake(key)
    await calls.times(2)

    await calls.queue.close()
    assert calls.at_once.total() == 0
    assert len(calls.queue) == 0
    calls.gate.set()
    calls.queue.wake("a")
    await calls.still()

    assert calls.begun == ["a", "b"]
    assert calls.errors == [], "being ended is no error"


@in_a_loop
async def test_a_closed_queue_forgets_what_was_planned() -> None:
    calls = Calls()
    calls.gate.set()
    calls.answers = [timedelta(milliseconds=1), OSError()]
    calls.queue.wake("planned")
    calls.queue.wake("failed")
    await calls.times(2)

    await calls.queue.close()
    await asyncio.sleep(0.005)

    assert len(calls.begun) == 2


@in_a_loop
async def test_a_key_with_nothing_to_come_takes_no_memory() -> None:
    calls = Calls()
    calls.gate.set()

    for number in range(1000):
        calls.queue.wake(f"job {number}")
    await calls.idle()

    assert calls.queue._entries == {}


@in_a_loop
async def test_keys_that_are_given_up_are_cancelled_and_forgotten_and_the_others_go_on() -> None:
    calls = Calls()
    calls.answers = [None, None, timedelta(milliseconds=1)]
    calls.queue.wake("given up")
    calls.queue.wake("kept")
    await calls.times(2)

    calls.queue.discard(lambda key: key == "given up")
    await calls.still()
    assert (len(calls.queue), calls.at_once["given up"]) == (1, 0)
    calls.gate.set()
    await calls.idle()
    assert calls.errors == [], "being given up is no error"

    calls.queue.wake("given up")
    await calls.times(3)
    calls.queue.discard(lambda key: key == "given up")
    await asyncio.sleep(0.005)
    assert calls.begun == ["given up", "kept", "given up"], "what was planned is forgotten"


class Busy:
    """A queue with one worker, which is held by one key until the test lets go."""

    def __init__(self) -> None:
        self.calls = Calls(workers=1)
        self.queue = self.calls.queue

    async def begin(self) -> None:
        self.queue.wake("first")
        await self.calls.times(1)

    async def end(self) -> list[str]:
        """What was reconciled after the first, in its order."""
        await self.calls.still()
        self.calls.gate.set()
        await self.calls.idle()
        return self.calls.begun[1:]


@in_a_loop
async def test_what_somebody_waits_for_goes_before_what_can_wait() -> None:
    busy = Busy()
    await busy.begin()
    for key in ("numbers 1", "numbers 2"):
        busy.queue.wake(key, can_wait=True)
    await busy.calls.still()
    for key in ("phase 1", "phase 2"):
        busy.queue.wake(key)

    assert await busy.end() == ["phase 1", "phase 2", "numbers 1", "numbers 2"]


@in_a_loop
async def test_what_can_wait_goes_first_as_well_once_something_happens_that_cannot() -> None:
    busy = Busy()
    await busy.begin()
    for key in ("numbers 1", "numbers 2"):
        busy.queue.wake(key, can_wait=True)
    await busy.calls.still()
    busy.queue.wake("numbers 2")

    assert await busy.end() == ["numbers 2", "numbers 1"]


@in_a_loop
async def test_what_is_old_takes_turns_with_what_cannot_wait() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "OLD_SECONDS", 0.0)
        busy = Busy()
        await busy.begin()
        for key in ("numbers 1", "numbers 2"):
            busy.queue.wake(key, can_wait=True)
        await busy.calls.still()
        for key in ("phase 1", "phase 2", "phase 3"):
            busy.queue.wake(key)

        assert await busy.end() == ["phase 1", "numbers 1", "phase 2", "numbers 2", "phase 3"]


@in_a_loop
async def test_a_turn_is_not_lost_with_a_key_that_is_discarded() -> None:
    busy = Busy()
    await busy.begin()
    for key in ("gone 1", "gone 2", "stays"):
        busy.queue.wake(key, can_wait=key == "gone 1")
    await busy.calls.still()
    busy.queue.discard(lambda key: key.startswith("gone"))

    assert await busy.end() == ["stays"]
