"""Who is looked at when: one worker for a key at a time, nothing lost, nothing done twice, and errors that do not come too often."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import wraps

import pytest

from finetune_operator.cluster import work_queue
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


class Looks:
    """Stands for the controller: notes who is looked at, and lets nobody finish before the test says so."""

    def __init__(self, workers: int = 10) -> None:
        self.begun: list[str] = []
        self.at_once: Counter[str] = Counter()
        self.most_of_one: Counter[str] = Counter()
        self.most = 0
        self.gate = asyncio.Event()
        self.answers: list[timedelta | Exception | None] = []
        """What the next looks end with; None when nothing is left."""
        self.errors: list[tuple[str, Exception]] = []
        self.queue = WorkQueue(
            self.look, workers=workers, on_error=lambda key, error: self.errors.append((key, error))
        )

    async def look(self, key: str) -> timedelta | None:
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
        """Waits until so many looks have begun."""
        while len(self.begun) < count:
            await asyncio.sleep(0.0005)

    async def idle(self) -> None:
        """Waits until nothing is looked at or waits for it."""
        while len(self.queue):
            await asyncio.sleep(0.0005)

    async def still(self) -> None:
        """Lets everything that can happen happen."""
        for _ in range(20):
            await asyncio.sleep(0)


@in_a_loop
async def test_a_key_is_looked_at_by_one_worker_at_a_time_and_once_more_after_all_that_woke_it_meanwhile() -> (
    None
):
    looks = Looks()
    looks.queue.wake("a")
    await looks.times(1)

    for _ in range(100):
        looks.queue.wake("a")
        await looks.still()
    assert looks.begun == ["a"]
    looks.gate.set()
    await looks.idle()

    assert looks.begun == ["a", "a"]
    assert looks.most_of_one == {"a": 1}


@in_a_loop
async def test_what_wakes_a_key_before_it_is_looked_at_is_one_look() -> None:
    looks = Looks()
    looks.gate.set()

    for _ in range(100):
        looks.queue.wake("a")
    await looks.idle()

    assert looks.begun == ["a"]


@in_a_loop
async def test_different_keys_are_looked_at_at_the_same_time_up_to_the_number_of_workers() -> None:
    looks = Looks(workers=3)
    for number in range(20):
        looks.queue.wake(f"job {number}")
    await looks.times(3)
    await looks.still()

    assert len(looks.begun) == 3
    assert len(looks.queue) == 20
    looks.gate.set()
    await looks.idle()

    assert looks.most == 3
    assert sorted(looks.begun) == sorted(f"job {number}" for number in range(20)), "each once"


@in_a_loop
async def test_a_key_that_waits_for_a_worker_is_not_looked_at_twice_for_being_woken_meanwhile() -> None:
    looks = Looks(workers=1)
    looks.queue.wake("first")
    await looks.times(1)
    for _ in range(10):
        looks.queue.wake("second")
        await looks.still()

    looks.gate.set()
    await looks.idle()

    assert looks.begun == ["first", "second"]


@in_a_loop
async def test_a_key_that_is_woken_all_the_time_does_not_keep_the_worker_from_others() -> None:
    looks = Looks(workers=1)
    looks.gate.set()

    async def look(key: str) -> None:
        looks.begun.append(key)
        await asyncio.sleep(0)
        if key == "busy" and len(looks.begun) < 1000:
            looks.queue.wake("busy")

    looks.queue = WorkQueue(look, workers=1, on_error=lambda *_: None)
    looks.queue.wake("busy")
    looks.queue.wake("patient")
    await looks.idle()

    assert looks.begun.index("patient") < 10
    assert len(looks.begun) >= 1000


@in_a_loop
async def test_a_key_that_is_woken_all_the_time_is_looked_at_seldom_and_once_more_after_the_last_wake() -> (
    None
):
    work_queue.BETWEEN_RECONCILES = timedelta(milliseconds=50)
    looks = Looks()
    looks.gate.set()
    loop = asyncio.get_running_loop()
    looks.answers = [timedelta(hours=1)] * 1000
    begun = loop.time()
    looks.queue.wake("a")
    await looks.times(1)

    while loop.time() - begun < 0.22:
        looks.queue.wake("a")
        await asyncio.sleep(0.001)
    seen = len(looks.begun)
    looks.queue.wake("a")
    await asyncio.sleep(0.11)

    assert seen <= 5
    assert len(looks.begun) == seen + 1
    await looks.queue.close()


@in_a_loop
async def test_the_first_look_does_not_wait_and_a_key_that_rests_keeps_no_worker_from_others() -> None:
    work_queue.BETWEEN_RECONCILES = timedelta(hours=1)
    looks = Looks(workers=1)
    looks.gate.set()
    looks.answers = [timedelta(hours=1), None]
    looks.queue.wake("rests")
    await looks.times(1)
    await looks.still()
    looks.queue.wake("rests")
    await looks.still()

    looks.queue.wake("other")
    await looks.times(2)

    assert looks.begun == ["rests", "other"]
    await looks.queue.close()


@in_a_loop
async def test_an_error_is_told_and_the_key_looked_at_again_later_and_later() -> None:
    looks = Looks()
    looks.gate.set()
    looks.answers = [OSError(str(number)) for number in range(7)]
    delays: list[float] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def noted(delay: float, *arguments: object) -> asyncio.TimerHandle:
        delays.append(delay)
        return call_later(delay, *arguments)  # type: ignore[arg-type]

    loop.call_later = noted  # type: ignore[assignment, method-assign]
    looks.queue.wake("a")
    await looks.times(8)

    assert [(key, str(error)) for key, error in looks.errors] == [("a", str(number)) for number in range(7)]
    assert [delay for delay in delays if delay >= 0.001][:7] == [
        0.001,
        0.002,
        0.004,
        0.008,
        0.008,
        0.008,
        0.008,
    ]
    await looks.idle()


@in_a_loop
async def test_after_a_success_the_first_retry_is_soon_again() -> None:
    looks = Looks()
    looks.gate.set()
    looks.answers = [OSError(), OSError(), OSError(), None]
    looks.queue.wake("a")
    await looks.idle()

    looks.answers = [OSError()]
    looks.queue.wake("a")
    while not looks.queue._entries["a"].failures:
        await asyncio.sleep(0)

    assert looks.queue._entries["a"].failures == 1
    await looks.idle()
    assert len(looks.begun) == 6


@in_a_loop
async def test_wakes_during_a_look_that_fails_do_not_shorten_the_wait() -> None:
    looks = Looks()
    looks.answers = [OSError()]
    looks.queue.wake("a")
    await looks.times(1)
    looks.queue.wake("a")
    looks.gate.set()
    await looks.still()

    assert looks.begun == ["a"]
    await looks.idle()
    assert looks.begun == ["a", "a"]


@in_a_loop
async def test_a_key_that_failed_does_not_keep_the_worker_from_others() -> None:
    work_queue.FIRST_RETRY = timedelta(milliseconds=8)
    looks = Looks(workers=1)
    looks.gate.set()
    looks.answers = [OSError()]
    looks.queue.wake("broken")
    await looks.times(1)
    await looks.still()
    looks.queue.wake("well")
    await looks.still()

    assert looks.begun[:2] == ["broken", "well"]
    await looks.idle()


@in_a_loop
async def test_a_key_is_looked_at_again_by_itself_when_the_look_said_so() -> None:
    looks = Looks()
    looks.gate.set()
    looks.answers = [timedelta(milliseconds=2), timedelta(milliseconds=2), None]

    looks.queue.wake("a")
    await looks.idle()

    assert looks.begun == ["a", "a", "a"]


@in_a_loop
async def test_a_wake_takes_the_place_of_the_look_that_was_planned() -> None:
    looks = Looks()
    looks.gate.set()
    looks.answers = [timedelta(milliseconds=20), timedelta(hours=1)]
    looks.queue.wake("a")
    await looks.times(1)
    await looks.still()

    looks.queue.wake("a")
    await looks.times(2)
    await asyncio.sleep(0.04)

    assert looks.begun == ["a", "a"], "nothing is left of the plan"
    await looks.queue.close()


@in_a_loop
async def test_what_woke_a_key_during_a_look_comes_before_what_the_look_planned() -> None:
    looks = Looks()
    looks.answers = [timedelta(hours=1), None]
    looks.queue.wake("a")
    await looks.times(1)
    looks.queue.wake("a")
    looks.gate.set()

    await looks.idle()

    assert looks.begun == ["a", "a"]


@in_a_loop
async def test_a_closed_queue_ends_looks_and_begins_none() -> None:
    looks = Looks(workers=2)
    looks.answers = [timedelta(milliseconds=1)]
    for key in ("a", "b", "waits"):
        looks.queue.wake(key)
    await looks.times(2)

    await looks.queue.close()
    assert looks.at_once.total() == 0
    assert len(looks.queue) == 0
    looks.gate.set()
    looks.queue.wake("a")
    await looks.still()

    assert looks.begun == ["a", "b"]
    assert looks.errors == [], "being ended is no error"


@in_a_loop
async def test_a_closed_queue_forgets_what_was_planned() -> None:
    looks = Looks()
    looks.gate.set()
    looks.answers = [timedelta(milliseconds=1), OSError()]
    looks.queue.wake("planned")
    looks.queue.wake("failed")
    await looks.times(2)

    await looks.queue.close()
    await asyncio.sleep(0.005)

    assert len(looks.begun) == 2


@in_a_loop
async def test_a_key_with_nothing_to_come_takes_no_memory() -> None:
    looks = Looks()
    looks.gate.set()

    for number in range(1000):
        looks.queue.wake(f"job {number}")
    await looks.idle()

    assert looks.queue._entries == {}
