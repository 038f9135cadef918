"""Random lives of several deployments on a tight budget: nobody is forgotten and no limit is broken."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from autoscaler.replica import LIVE_STATES
from serve.core.clock import NS_PER_S
from serve.core.events import Failed
from serve.core.ids import ReplicaId, RevisionKey
from tests.autoscaler.world import MIB, Request, World, a_world

pytestmark = pytest.mark.looptime

BUDGET_MIB = 200


def check(world: World, keys: list[RevisionKey]) -> None:
    held_bytes = 0
    for key in keys:
        statuses = world.autoscaler.describe(key)
        held_bytes += sum(status.memory_bytes for status in statuses)
        live = [status for status in statuses if status.state in LIVE_STATES]
        assert len(live) <= 4, "max"
    assert held_bytes <= BUDGET_MIB * MIB
    assert world.metrics.registry.get_sample_value("serve_reserved_memory_bytes") == held_bytes
    for process in world.driver.processes:
        assert any(process == status.id for key in keys for status in world.autoscaler.describe(key))


def act(world: World, chance: random.Random, keys: list[RevisionKey], asked: list[Request]) -> None:
    key = chance.choice(keys)
    running = world.running(key.name)
    match chance.randrange(12):
        case 0 | 1 | 2 | 3 | 4:
            asked += world.pool.ask(key, chance.choice([0.01, 0.5, 3.0]), chance.choice([1, 1, 2, 10]))
        case 5 if running:
            world.driver.crash(chance.choice(running))
        case 6:
            behaviour = world.driver.behaviour(key.name)
            behaviour.fails = chance.choice([None, None, Failed(0, "load_error", "no")])
            behaviour.cannot_spawn = chance.choice(["", "", "no process"])
            behaviour.never_ready = chance.random() < 0.1
            behaviour.load_s = chance.choice([0.01, 0.5, 5.0])
        case 7:
            world.autoscaler.set_reachable(key, chance.random() < 0.7)
        case 8 if running:
            world.stats(chance.choice(running), peak_mib=40)
        case 9 if running:
            replica_id = chance.choice(running)
            if world.pool.replicas[replica_id].is_open:
                world.autoscaler.replica_overdue(ReplicaId(replica_id), "a request took longer than it may")
        case 10 if running:
            replica_id = chance.choice(running)
            if world.pool.replicas[replica_id].is_open:
                world.autoscaler.replica_link_lost(ReplicaId(replica_id))
        case _:
            world.autoscaler.poke(key)


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_everyone_is_answered_or_refused_and_all_goes_back_to_zero(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    async with a_world(tmp_path, budget_mib=BUDGET_MIB) as world:
        keys = [world.add(f"model-{number}", idle=20, max=4, start_timeout=30) for number in range(6)]
        asked: list[Request] = []
        for _ in range(150):
            act(world, chance, keys, asked)
            check(world, keys)
            await asyncio.sleep(chance.choice([0.0, 0.001, 0.1, 1.0, 8.0]))
            check(world, keys)
        world.driver.behaviours.clear()
        await asyncio.sleep(1500)
        check(world, keys)
        assert asked
        for request in asked:
            assert (request.answered_ns > 0) != (request.error is not None), "ended exactly once"
        assert world.driver.processes == {}, "zero is exit"
        assert world.timers() == 0, "and no timer"
        assert world.clock.monotonic_ns() > 1500 * NS_PER_S
