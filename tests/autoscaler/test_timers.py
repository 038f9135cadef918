"""One timer of the loop for any number of instants, under virtual time."""

from __future__ import annotations

import asyncio
import random

import pytest

from autoscaler.timers import Timers
from serve.core.clock import NS_PER_S
from tests.autoscaler.world import LoopClock

pytestmark = pytest.mark.looptime


def scheduled() -> int:
    handles: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return sum(not handle.cancelled() for handle in handles)


async def test_each_is_called_once_at_its_time_in_order_of_time() -> None:
    clock, called = LoopClock(), list[tuple[int, int]]()
    timers, start_ns = Timers(clock), clock.monotonic_ns()
    order = list(range(200))
    random.Random(1).shuffle(order)
    for number in order:
        timers.set(
            number,
            start_ns + number * NS_PER_S // 10,
            lambda number=number: called.append((number, clock.monotonic_ns() - start_ns)),  # type: ignore[misc]
        )
    assert scheduled() == 1
    await asyncio.sleep(100)
    assert [number for number, _ in called] == list(range(200))
    assert all(0 <= at_ns - number * NS_PER_S // 10 <= 2000 for number, at_ns in called)
    assert len(timers) == 0
    assert scheduled() == 0


async def test_later_setting_replaces_the_earlier_one_in_both_directions() -> None:
    clock, called = LoopClock(), list[str]()
    timers, now_ns = Timers(clock), clock.monotonic_ns()
    timers.set("a", now_ns + 1 * NS_PER_S, lambda: called.append("early"))
    timers.set("a", now_ns + 5 * NS_PER_S, lambda: called.append("late"))
    timers.set("b", now_ns + 9 * NS_PER_S, lambda: called.append("never"))
    timers.set("b", now_ns + 2 * NS_PER_S, lambda: called.append("sooner"))
    await asyncio.sleep(4)
    assert called == ["sooner"]
    await asyncio.sleep(10)
    assert called == ["sooner", "late"]


async def test_advance_only_brings_forward() -> None:
    clock, called = LoopClock(), list[str]()
    timers, now_ns = Timers(clock), clock.monotonic_ns()
    timers.set("a", now_ns + 2 * NS_PER_S, lambda: called.append("set"))
    timers.advance("a", now_ns + 3 * NS_PER_S, lambda: called.append("no"))
    timers.advance("b", now_ns + 3 * NS_PER_S, lambda: called.append("new"))
    timers.advance("b", now_ns + 1 * NS_PER_S, lambda: called.append("forward"))
    await asyncio.sleep(10)
    assert called == ["forward", "set"]


async def test_pushing_an_instant_back_many_times_keeps_one_entry_and_one_timer() -> None:
    clock, called = LoopClock(), list[int]()
    timers, now_ns = Timers(clock), clock.monotonic_ns()
    for step in range(10_000):
        timers.set("a", now_ns + NS_PER_S + step, lambda: called.append(clock.monotonic_ns() - now_ns))
    assert len(timers._heap) == 1
    assert scheduled() == 1
    await asyncio.sleep(2)
    assert called == [pytest.approx(NS_PER_S + 10_000, abs=3000)]


async def test_nothing_set_means_no_timer() -> None:
    clock = LoopClock()
    timers = Timers(clock)
    timers.set("a", clock.monotonic_ns() + NS_PER_S, lambda: None)
    timers.cancel("a")
    timers.cancel("unknown")
    assert scheduled() == 0


async def test_callback_may_set_its_own_token_again() -> None:
    clock, called = LoopClock(), list[int]()
    timers, start_ns = Timers(clock), clock.monotonic_ns()

    def again() -> None:
        called.append(round((clock.monotonic_ns() - start_ns) / NS_PER_S))
        if len(called) < 5:
            timers.set("a", clock.monotonic_ns() + NS_PER_S, again)

    timers.set("a", start_ns + NS_PER_S, again)
    await asyncio.sleep(20)
    assert called == [1, 2, 3, 4, 5]


async def test_instant_in_the_past_is_called_in_the_next_turn() -> None:
    clock, called = LoopClock(), list[str]()
    timers = Timers(clock)
    timers.set("a", clock.monotonic_ns() - NS_PER_S, lambda: called.append("a"))
    assert called == []
    await asyncio.sleep(0.001)
    assert called == ["a"]


async def test_callback_that_fails_does_not_stop_the_others() -> None:
    clock, called, errors = LoopClock(), list[str](), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context["exception"]))
    timers, now_ns = Timers(clock), clock.monotonic_ns()

    def fail() -> None:
        raise RuntimeError("broken")

    timers.set("a", now_ns + NS_PER_S, fail)
    timers.set("b", now_ns + NS_PER_S + 1, lambda: called.append("b"))
    timers.set("c", now_ns + 2 * NS_PER_S, lambda: called.append("c"))
    await asyncio.sleep(3)
    assert called == ["b", "c"]
    assert len(errors) == 1
