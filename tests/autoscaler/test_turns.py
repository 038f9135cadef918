"""Who waits for memory gets a turn, and holds nobody up for what cannot be. Virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from serve.core.ids import RevisionKey
from tests.autoscaler.world import Request, a_world

pytestmark = pytest.mark.looptime


async def test_who_wanted_more_than_it_got_goes_to_the_end_of_the_line_with_each_replica(tmp_path: Path) -> None:
    """Its place of long ago would win back, each time, what it had just given up."""
    async with a_world(tmp_path, budget_mib=60) as world:
        cat, dog = world.add("cat"), world.add("dog")
        asked: dict[RevisionKey, list[Request]] = {cat: [], dog: []}
        for _ in range(1200):
            for key in (cat, dog):
                if world.pool.gates[key].pending < 5:
                    asked[key] += world.pool.ask(key, duration_s=0.5, count=5)
            await asyncio.sleep(0.1)
        for key in (cat, dog):
            assert sum(bool(request.answered_ns) for request in asked[key]) > 60, key


async def test_who_can_never_fit_beside_what_min_promises_holds_nobody_up(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=100) as world:
        world.driver.behaviour("large").peak_bytes = 80 << 20
        world.add("kept", min=1)
        await asyncio.sleep(1)
        large = world.add("large", memory_mib=80)
        small = world.add("small")
        world.pool.ask(large, duration_s=0.2)
        await asyncio.sleep(15)
        (asked,) = world.pool.ask(small, duration_s=0.2)
        await asyncio.sleep(5)
        assert asked.answered_ns
        assert world.running("kept")


async def test_a_replica_that_min_promises_comes_though_nobody_asks_for_it_and_others_are_never_idle(
    tmp_path: Path,
) -> None:
    async with a_world(tmp_path, budget_mib=60) as world:
        busy = world.add("busy")
        world.pool.ask(busy, duration_s=15, count=20)
        await asyncio.sleep(1)
        world.add("kept", min=1)
        await asyncio.sleep(40)
        assert world.running("kept")
        assert not world.driver.kills


async def test_min_is_kept_on_a_machine_with_few_cores(tmp_path: Path) -> None:
    async with a_world(tmp_path, cores=1) as world:
        world.add("kept", min=5)
        await asyncio.sleep(10)
        assert len(world.running("kept")) == 5
