"""The byte bound of a gate: never exceeded, served in order, and nobody is forgotten when another leaves."""

from __future__ import annotations

import asyncio
import random

import pytest

from activator.room import Room


async def test_bytes_are_given_in_order_and_the_bound_holds() -> None:
    room = Room(100)
    order: list[int] = []

    async def take(number: int, size: int) -> None:
        await room.reserve(size, 5)
        assert room.held_bytes <= 100
        order.append(number)
        await asyncio.sleep(0)
        room.release(size)

    assert room.try_reserve(100)
    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(take(number, 60))
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
    room = Room(10)
    assert room.try_reserve(8)
    waiting = asyncio.ensure_future(room.reserve(5, 5))
    await asyncio.sleep(0)
    assert not room.try_reserve(1)
    room.release(8)
    await waiting
    assert room.held_bytes == 5


async def test_who_waits_too_long_is_told_and_leaves_no_trace() -> None:
    room = Room(10)
    assert room.try_reserve(10)
    with pytest.raises(TimeoutError):
        await room.reserve(1, 0.01)
    room.release(10)
    assert room.try_reserve(10)


async def test_one_who_is_called_and_leaves_passes_the_call_on() -> None:
    room = Room(10)
    assert room.try_reserve(10)
    first, second = (asyncio.ensure_future(room.reserve(10, 5)) for _ in range(2))
    await asyncio.sleep(0)
    room.release(10)
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    await asyncio.wait_for(second, 5)


@pytest.mark.parametrize("seed", range(20))
async def test_under_random_cancellation_everybody_else_gets_in(seed: int) -> None:
    rng = random.Random(seed)
    room = Room(100)
    done = 0

    async def take(size: int) -> None:
        nonlocal done
        await room.reserve(size, 5)
        try:
            assert room.held_bytes <= 100 or room.held_bytes == size
            for _ in range(rng.randrange(3)):
                await asyncio.sleep(0)
            done += 1
        finally:
            room.release(size)

    tasks = [asyncio.ensure_future(take(rng.choice([1, 30, 60, 100, 150]))) for _ in range(60)]
    cancelled = 0
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        if rng.random() < 0.3:
            cancelled += rng.choice(tasks).cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(result is None for result in results) == done
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
    assert room.held_bytes == 0


async def test_who_fits_gets_in_as_soon_as_the_larger_one_before_it_has_left_the_line() -> None:
    room = Room(10)
    assert room.try_reserve(6)
    large = asyncio.ensure_future(room.reserve(5, 0.01))
    small = asyncio.ensure_future(room.reserve(4, 5))
    with pytest.raises(TimeoutError):
        await large
    await asyncio.wait_for(small, 1)
    assert room.held_bytes == 10
