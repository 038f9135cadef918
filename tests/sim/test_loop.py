"""Virtual time: hours pass in no time, in the right order, and what waits for ever is found."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from serve.core.clock import NS_PER_S
from simulator.loop import SimulatedClock, Spinning, Stuck, VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop(SimulatedClock())
    yield made
    if not made.is_closed():
        made.bury()


def test_a_day_passes_in_no_time_and_to_the_nanosecond(loop: VirtualLoop) -> None:
    began_ns, really_s = loop.clock.monotonic_ns(), time.monotonic()
    loop.run_until_complete(asyncio.sleep(86_400))
    assert loop.clock.monotonic_ns() - began_ns == 86_400 * NS_PER_S
    assert time.monotonic() - really_s < 5


def test_timers_and_tasks_come_in_the_order_of_their_times(loop: VirtualLoop) -> None:
    seen: list[str] = []

    async def late() -> None:
        await asyncio.sleep(0.2)
        seen.append("task")

    async def all_of_them() -> None:
        loop.call_later(0.3, seen.append, "last")
        loop.call_later(0.1, seen.append, "first")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.25):
                await asyncio.gather(late(), asyncio.Event().wait())
        seen.append("timeout")
        await asyncio.sleep(1)

    loop.run_until_complete(all_of_them())
    assert seen == ["first", "task", "timeout", "last"]


def test_who_waits_for_what_nothing_will_bring_is_found(loop: VirtualLoop) -> None:
    with pytest.raises(Stuck):
        loop.run_until_complete(asyncio.Event().wait())


def test_a_loop_that_turns_without_time_passing_is_found(loop: VirtualLoop) -> None:
    async def spin() -> None:
        for _ in range(1_000_000):
            await asyncio.sleep(0)

    with pytest.raises(Spinning):
        loop.run_until_complete(spin())


def test_what_a_callback_raises_ends_the_run(loop: VirtualLoop) -> None:
    loop.call_later(1, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        loop.run_until_complete(asyncio.sleep(5))


def test_jobs_of_threads_end_after_their_time_and_can_fail(loop: VirtualLoop) -> None:
    loop.job_s = lambda: 0.5

    async def both() -> tuple[str, float]:
        answer = await asyncio.to_thread(str, 7)
        with pytest.raises(ValueError, match="invalid literal"):
            await asyncio.to_thread(int, "x")
        return answer, loop.time()

    began_s = loop.time()
    answer, ended_s = loop.run_until_complete(both())
    assert (answer, round(ended_s - began_s, 6)) == ("7", 1.0)


def test_each_turn_tells_whether_the_instant_is_settled() -> None:
    told: list[tuple[bool, float]] = []
    clock = SimulatedClock()
    watched = VirtualLoop(clock, lambda is_settled: told.append((is_settled, round(watched.time() - 1000, 6))))
    watched.call_later(0.25, lambda: watched.call_soon(str))
    watched.run_until_complete(asyncio.sleep(0.5))
    watched.close()
    assert [at_s for is_settled, at_s in told if is_settled] == [0.0, 0.25]
    assert (False, 0.25) in told


def test_the_wall_clock_can_be_set_and_monotonic_time_does_not_notice() -> None:
    clock = SimulatedClock()
    ahead_ns = clock.wall_ns() - clock.monotonic_ns()
    clock.step_wall(-3600 * NS_PER_S)
    clock.advance(5)
    assert clock.wall_ns() - clock.monotonic_ns() == ahead_ns - 3600 * NS_PER_S


def test_a_buried_process_leaves_no_task_and_begins_no_job(loop: VirtualLoop) -> None:
    done: list[str] = []
    loop.job_s = lambda: 1.0

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(done.append, "job"))
            group.create_task(asyncio.Event().wait())

    async def die() -> None:
        asyncio.ensure_future(work())  # noqa: RUF006
        await asyncio.sleep(0.5)

    loop.run_until_complete(die())
    loop.bury()
    assert done == []
    assert loop.is_closed()
