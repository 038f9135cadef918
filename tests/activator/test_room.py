"""The byte bound of a gate: served in order, exceeded by one body at most; nobody is forgotten when another leaves."""

from __future__ import annotations

import asyncio
import random

import pytest

from activator.room import Room


async def test_who_waits_is_served_in_order_and_the_bound_holds() -> None:
    room = Room(100, 60)
    order: list[int] = []

    async def take(number: int) -> None:
        size = await room.wait(0)
        assert room.held_bytes <= 100
        order.append(number)
        await asyncio.sleep(0)
        room.release(size)

    assert room.try_reserve(100)
    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(take(number))
        await asyncio.sleep(0)
        assert order == []
        room.release(100)
    assert order == list(range(20))
    assert room.held_bytes == 0


async def test_a_body_larger_than_the_bound_gets_in_when_nothing_else_is_held() -> None:
    room = Room(10)
    assert room.try_reserve(50)
    assert not room.try_reserve(1)
    room.release(50)
    assert room.try_reserve(1)


async def test_a_newcomer_does_not_overtake_who_waits() -> None:
    room = Room(10, 5)
    assert room.try_reserve(10)
    waiting = asyncio.ensure_future(room.wait(0))
    await asyncio.sleep(0)
    room.release(3)
    assert not room.try_reserve(1)
    room.release(2)
    assert await waiting == 5
    assert room.held_bytes == 10


async def test_who_waits_too_long_is_told_and_leaves_no_trace() -> None:
    room = Room(10)
    assert room.try_reserve(10)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(room.wait(0), 0.01)
    room.release(10)
    assert room.try_reserve(10)


async def test_one_who_is_called_and_leaves_passes_the_call_on() -> None:
    room = Room(10)
    assert room.try_reserve(10)
    first, second = (asyncio.ensure_future(room.wait(0)) for _ in range(2))
    await asyncio.sleep(0)
    room.release(10)
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    await asyncio.wait_for(second, 5)


async def test_bodies_that_are_half_there_and_fill_the_room_do_not_wait_for_each_other() -> None:
    room = Room(100, 10)
    most = 0

    async def read(size: int) -> None:
        nonlocal most
        mine = granted = 0
        while mine < size:
            granted = await room.wait(mine, again=granted > 0)
            await asyncio.sleep(0)  # the part is on its way
            room.take(10 - granted)
            mine += 10
            most = max(most, room.held_bytes)
        await asyncio.sleep(0)
        room.release(mine)

    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(read(80))
    assert room.held_bytes == 0
    assert most <= 100 + 80 + 10 * 10, "one body, and one part of each that is read"


@pytest.mark.parametrize("seed", range(20))
async def test_under_random_cancellation_everybody_else_gets_in(seed: int) -> None:
    rng = random.Random(seed)
    room = Room(100, 25)
    done = 0

    async def take(size: int) -> None:
        nonlocal done
        mine = granted = 0
        try:
            while mine < size:
                granted = await room.wait(mine, again=mine > 0)
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
                part = min(25, size - mine)
                room.take(part - granted)
                granted = 0
                mine += part
            done += 1
        finally:
            room.release(mine + granted)

    tasks = [asyncio.ensure_future(take(rng.choice([1, 30, 60, 100, 150]))) for _ in range(60)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        if rng.random() < 0.3:
            rng.choice(tasks).cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(result is None for result in results) == done
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
    assert room.held_bytes == 0
    assert room.waiting == 0


async def test_who_is_behind_gets_in_as_soon_as_the_one_before_it_has_left_the_line() -> None:
    room = Room(10)
    assert room.try_reserve(10)
    first = asyncio.ensure_future(asyncio.wait_for(room.wait(0), 0.01))
    second = asyncio.ensure_future(room.wait(0))
    with pytest.raises(TimeoutError):
        await first
    room.release(10)
    await asyncio.wait_for(second, 1)
