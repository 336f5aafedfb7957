"""Who goes on when not all can: what somebody waits for first, what can wait as the API server has room."""

from __future__ import annotations

import asyncio

from finetune_operator.cluster.turns import Room, Turns, Waiter


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
