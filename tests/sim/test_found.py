"""What the stories found in the product, each told alone."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from activator.calls import Reply
from serve.core.errors import StorageFull, UnknownVersion
from serve.core.ids import RevisionKey
from serve.core.lifecycle import Lifecycle
from serve.core.revision import Revision, Route, State
from serve.core.spec import DeploymentSpec
from simulator.callers import SimulatedCall
from simulator.disk import SimulatedDisk
from simulator.habits import Habits
from simulator.loop import SimulatedClock, VirtualLoop
from simulator.platform import Machine, SimulatedPlatform
from simulator.work import Work

KEY = RevisionKey("m", 1)
MIB = 1 << 20


def live(folder: Path, story: Callable[[SimulatedPlatform], Awaitable[None]], **settings: Any) -> None:
    """Run `story` on a platform on paper with one deployment, `m`, whose replicas start in 0.11 s."""
    clock = SimulatedClock()
    loop = VirtualLoop(clock)

    async def run() -> None:
        disk = SimulatedDisk(folder / "journal", random.Random(0))
        machine = Machine(memory_budget_bytes=1000 * MIB, cores=8)
        async with Lifecycle() as lifecycle:
            platform = SimulatedPlatform(
                machine, clock, random.Random(0), {"m": Habits(is_batchable=True)}, disk, lifecycle
            )
            spec = DeploymentSpec(**({"name": "m", "engine": "scripted", "concurrency": 1} | settings))
            revision = Revision(KEY, spec, "", "/nowhere", "", 1, 40 * MIB, None)
            platform.router.add_revision(revision)
            platform.router.route(Route("m", State.COLD, ((1, 1),), {1: revision}))
            platform.autoscaler.add(revision)
            await story(platform)
            await platform.close()
            lifecycle.stop()

    try:
        loop.run_until_complete(run())
    finally:
        loop.bury()


def ask(platform: SimulatedPlatform, run_s: float) -> SimulatedCall:
    return platform.call("m", Work(round(run_s * 1e6)), lambda call: None)


def test_a_replica_goes_also_when_its_last_caller_left_and_nothing_tells_that_it_is_idle(tmp_path: Path) -> None:
    """It reports at most once a second that it became idle: the second time here, it does not."""

    async def story(platform: SimulatedPlatform) -> None:
        first = ask(platform, 0.01)
        while not first.is_done:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        second = ask(platform, 0.9)
        await asyncio.sleep(0.05)
        second.leave()
        await asyncio.sleep(0.6)
        assert platform.driver.running, "it still runs what nobody waits for"
        await asyncio.sleep(2.0)
        assert not platform.driver.running

    live(tmp_path, story, idle=0.5)


def test_answers_leave_whose_records_a_disk_took_before_it_was_full(tmp_path: Path) -> None:
    async def story(platform: SimulatedPlatform) -> None:
        calls = [ask(platform, 0.5) for _ in range(3)]
        await asyncio.sleep(0.3)
        platform.disk.free_bytes = 1500  # two records and a part of the third
        await asyncio.sleep(0.5)
        assert [isinstance(call.outcome, Reply) for call in calls] == [True, True, False]
        await asyncio.sleep(5.0)
        assert isinstance(calls[2].outcome, StorageFull)
        platform.disk.heal()
        await asyncio.sleep(2.0)

    live(tmp_path, story, concurrency=3, max_batch=3, timeout=3.0)


def test_who_waits_for_a_revision_that_is_retired_is_told_so_at_once_and_nothing_is_tried_again(tmp_path: Path) -> None:
    async def story(platform: SimulatedPlatform) -> None:
        inside, waiting = ask(platform, 5.0), ask(platform, 5.0)
        await asyncio.sleep(0.5)
        platform.router.retire_revision(KEY)
        assert isinstance(waiting.outcome, UnknownVersion)
        assert not inside.is_done
        [replica] = platform.driver.running.values()
        replica.die(None, signal.SIGSEGV)
        await asyncio.sleep(0.1)
        assert inside.status == 502
        platform.router.unroute("m")

    live(tmp_path, story, max=1)
