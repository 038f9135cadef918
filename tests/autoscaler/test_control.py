"""What publishing, deleting and shutting down ask of the autoscaler. Virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from autoscaler.replica import ReplicaState
from serve.core.errors import PublishError
from serve.core.events import ExitReason, Phase
from serve.core.ids import RevisionKey
from serve.core.revision import State
from tests.autoscaler.world import MIB, a_world

pytestmark = pytest.mark.looptime


async def test_warm_starts_one_replica_and_holds_it_until_release(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(reachable=False, idle=60)
        report = await world.autoscaler.warm(key)
        assert [report.replica_id] == world.running()
        assert report.pid == world.driver.processes[report.replica_id].pid
        assert report.ready.platform == "scripted"
        assert report.phases_ns[Phase.LOAD] == pytest.approx(90e6, abs=1e5)
        assert report.total_ns == pytest.approx(100e6, abs=1e5)
        await asyncio.sleep(1000)
        assert world.running() == [report.replica_id]
        assert world.timers() == 0
        world.autoscaler.set_reachable(key, True)
        await asyncio.sleep(10)
        world.autoscaler.release(key)
        await asyncio.sleep(59.9)
        assert world.running() == [report.replica_id], "its idle time begins with the release"
        await asyncio.sleep(0.2)
        assert world.running() == []


async def test_release_of_a_revision_that_was_never_routed_takes_it_to_zero_at_once(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(reachable=False)
        await world.autoscaler.warm(key)
        world.autoscaler.release(key)
        await asyncio.sleep(0.1)
        assert world.running() == []


async def test_second_warm_returns_the_replica_that_is_held(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(reachable=False)
        first = await world.autoscaler.warm(key)
        assert await world.autoscaler.warm(key) == first


async def test_publisher_that_leaves_takes_its_replica_along(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(reachable=False)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await world.autoscaler.warm(key)
        await asyncio.sleep(0.1)
        assert world.running() == []
        assert world.autoscaler.describe(key) == []


async def test_publisher_that_waits_for_memory_in_vain_hears_what_took_it(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=60) as world:
        holder = world.add("holder")
        world.pool.ask(holder, duration_s=1000)
        await asyncio.sleep(1)
        key = world.add(reachable=False, start_timeout=20)
        with pytest.raises(PublishError, match="waits for memory: 40 MiB are needed"):
            await world.autoscaler.warm(key)
        assert world.driver.ordered == world.running("holder")


async def test_replace_scales_by_what_publishing_learned(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        revision = world.revision(memory_mib=0)
        world.autoscaler.add(revision, reachable=False)
        await world.autoscaler.warm(revision.key)
        world.autoscaler.replace(dataclasses.replace(revision, memory_bytes=123 * MIB, threads=2))
        world.autoscaler.set_reachable(revision.key, True)
        world.autoscaler.release(revision.key)
        await asyncio.sleep(100)
        world.pool.ask(revision.key, duration_s=0.1)
        await asyncio.sleep(0.05)
        (slot,) = world.pool.replicas.values()
        assert (slot.info.memory_bytes, slot.info.cores) == (123 * MIB, 2)


async def test_same_revision_cannot_be_added_twice(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        revision = world.revision()
        world.autoscaler.add(revision)
        with pytest.raises(ValueError, match="digits-r1 is scaled already"):
            world.autoscaler.add(revision)


async def test_remove_lets_what_runs_finish_and_forgets_the_revision(tmp_path: Path) -> None:
    async with a_world(tmp_path, drain_timeout_s=30) as world:
        key = world.add(min=2)
        await asyncio.sleep(1)
        (request,) = world.pool.ask(key, duration_s=8)
        removing = asyncio.ensure_future(world.autoscaler.remove(key))
        await asyncio.sleep(1)
        assert len(world.running()) == 1, "the idle one is gone already"
        assert world.autoscaler.state_of(key) is State.DRAINING
        world.autoscaler.poke(key)
        await removing
        assert request.answered_ns
        assert world.now_s() == pytest.approx(9.0, abs=0.2)
        assert world.running() == []
        assert world.autoscaler.decisions("digits") == []
        assert world.timers() == 0
        await world.autoscaler.remove(key)


async def test_remove_waits_for_requests_of_any_length_and_its_caller_may_leave(tmp_path: Path) -> None:
    async with a_world(tmp_path, drain_timeout_s=5) as world:
        key = world.add(max=2, idle=1, stable_window=2, panic_window=1, execution_timeout=2000)
        requests = world.pool.ask(key, duration_s=1000, count=2)
        await asyncio.sleep(3)
        first, second = (asyncio.ensure_future(world.autoscaler.remove(key)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert all(request.answered_ns for request in requests)
        assert {exited.reason for exited in world.pool.gone} == {ExitReason.DRAINED}
        assert len(world.driver.ordered) == 2, "nothing is started for a revision that goes"


async def test_remove_calls_off_starts_at_every_stage(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        for pause_s in (0.0, 0.005, 0.05):
            key = world.add(f"model-{int(pause_s * 1000)}")
            world.pool.ask(key, duration_s=1)
            if pause_s:
                await asyncio.sleep(pause_s)
            await world.autoscaler.remove(key)
            assert world.driver.processes == {}
        assert world.timers() == 0


async def test_replica_that_becomes_ready_while_it_is_called_off_never_gets_a_request(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add()
        world.pool.ask(key, duration_s=1)
        await asyncio.sleep(0.0995)
        removing = asyncio.ensure_future(world.autoscaler.remove(key))
        await asyncio.sleep(0.0007)
        (process,) = world.driver.processes.values()
        assert process.is_ready, "the kill has not arrived yet"
        assert world.pool.open_replicas(key) == []
        await removing
        assert world.pool.gone[0].reason is ExitReason.STOPPED


async def test_neighbour_revision_of_the_same_deployment_stays_when_one_is_removed(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        old, new = world.add(number=1), world.add(number=2)
        for key in (old, new):
            world.pool.ask(key, duration_s=0.1)
        await asyncio.sleep(1)
        await world.autoscaler.remove(old)
        assert [record.key for record in world.autoscaler.decisions("digits")][-1] == old
        assert world.autoscaler.state_of(new) is State.READY
        assert world.autoscaler.state_of(RevisionKey("digits", 1)) is State.COLD


async def test_shutdown_drains_kills_the_rest_at_its_deadline_and_starts_nothing_more(tmp_path: Path) -> None:
    async with a_world(tmp_path, drain_timeout_s=100) as world:
        quick, slow = world.add("quick"), world.add("slow")
        (answered,) = world.pool.ask(quick, duration_s=2)
        world.pool.ask(slow, duration_s=1000)
        await asyncio.sleep(1)
        stopping = asyncio.ensure_future(world.autoscaler.shutdown(5.0))
        await asyncio.sleep(0.5)
        world.pool.ask(quick, duration_s=1)
        await stopping
        assert world.now_s() == pytest.approx(6.0, abs=0.1)
        assert answered.answered_ns
        assert {exited.reason for exited in world.pool.gone} == {ExitReason.DRAINED, ExitReason.STOPPED}
        assert len(world.driver.ordered) == 2


async def test_describe_tells_each_replica_with_its_state_and_since_when(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add()
        world.pool.ask(key, duration_s=0.1)
        states: list[tuple[ReplicaState, bool]] = []
        for _ in range(3):
            (status,) = world.autoscaler.describe(key)
            states.append((status.state, status.pid is not None))
            assert status.since_wall_ns <= world.clock.wall_ns()
            await asyncio.sleep(0.06)
        assert states == [
            (ReplicaState.ORDERED, False),
            (ReplicaState.STARTING, True),
            (ReplicaState.READY, True),
        ]


async def test_what_is_known_of_earlier_starts_is_expected_until_the_first_one_here(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        revision = world.revision("known")
        world.autoscaler.add(revision, start_s=7.5)
        assert world.autoscaler.expected_cold_start_s(revision.key) == 7.5
        assert world.autoscaler.cold_start_history(revision.key).count == 0
        world.pool.ask(revision.key, duration_s=0.1)
        await asyncio.sleep(1)
        assert world.autoscaler.expected_cold_start_s(revision.key) == pytest.approx(0.1, abs=0.01)
