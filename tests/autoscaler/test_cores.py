"""Cores are weights: a burst is not answered with more replicas than the machine can compute with. Virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from autoscaler.capacity import crowded
from tests.autoscaler.world import a_world

pytestmark = pytest.mark.looptime


async def test_a_burst_from_zero_orders_only_as_many_replicas_as_there_are_cores_for(tmp_path: Path) -> None:
    async with a_world(tmp_path, cores=2) as world:
        key = world.add("cat", concurrency=1)
        requests = world.pool.ask(key, 0.5, 100)
        await asyncio.sleep(60)
        assert all(request.answered_ns for request in requests)
        assert len(world.driver.ordered) <= 5
        assert any("cores" in reason for reason in world.reasons("cat"))


async def test_another_deployment_gets_its_first_replica_however_busy_the_cores_are(tmp_path: Path) -> None:
    async with a_world(tmp_path, cores=1) as world:
        cat, dog = world.add("cat", concurrency=1), world.add("dog")
        world.pool.ask(cat, 5, 20)
        await asyncio.sleep(1)
        (request,) = world.pool.ask(dog, duration_s=0.1)
        await asyncio.sleep(1)
        assert request.answered_ns


def test_the_sentence_has_the_figures() -> None:
    assert crowded(1, 3, 2) is None
    assert crowded(2, 3, 2) == ("replicas that start or have requests hold 3 of 4 cores (2 here): more would be slower")
