"""Scaling as callers live it: from zero, bursts, back to zero. Virtual time, real queues."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from autoscaler.replica import ReplicaState
from serve.core.clock import NS_PER_S
from serve.core.errors import QueueTimeout
from serve.core.events import ExitReason, Phase
from serve.core.ids import RevisionKey
from serve.core.revision import State
from tests.autoscaler.world import a_world

pytestmark = pytest.mark.looptime


async def test_first_request_orders_a_replica_in_the_same_turn_and_is_answered_by_it(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(idle=60)
        assert world.autoscaler.state_of(key) is State.COLD
        requests = world.pool.ask(key, duration_s=0.05, count=2)
        assert [status.state for status in world.autoscaler.describe(key)] == [ReplicaState.ORDERED]
        assert world.autoscaler.state_of(key) is State.STARTING
        await asyncio.sleep(0)
        assert world.driver.ordered_at_ns == [requests[0].asked_ns], "no time passed between request and order"
        await asyncio.sleep(0.2)
        assert world.autoscaler.state_of(key) is State.READY
        await asyncio.sleep(1)
        (replica_id,) = world.pool.open_replicas(key)
        assert {request.replica for request in requests} == {replica_id}
        assert world.reasons()[0] == "1 request waits and no replica runs: 0 → 1"
        (started,) = (status for status in world.autoscaler.describe(key))
        assert started.pid == world.driver.processes[replica_id].pid
        assert world.driver.log_files == [tmp_path / "replicas" / "digits" / f"{replica_id}.log"]


async def test_last_replica_exits_exactly_when_idle_time_after_the_last_activity_has_passed(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(idle=60)
        world.pool.ask(key, duration_s=0.37)
        await asyncio.sleep(10)
        (late,) = world.pool.ask(key, duration_s=0.1234)
        await asyncio.sleep(0.1234)
        await world.settle()
        assert late.answered_ns
        (replica,) = world.running()
        await asyncio.sleep(60 - 0.0001)
        assert world.autoscaler.describe(key)[0].state is ReplicaState.READY
        await asyncio.sleep(0.0002)
        assert world.autoscaler.describe(key)[0].state is ReplicaState.DRAINING
        await asyncio.sleep(0.02)
        assert world.autoscaler.describe(key) == []
        assert world.autoscaler.state_of(key) is State.COLD
        assert [(exited.id, exited.reason) for exited in world.pool.gone] == [(replica, ExitReason.DRAINED)]
        assert world.reasons()[-1] == "no request for 60 s (idle): 1 → 0"
        assert world.timers() == 0


async def test_request_right_after_the_idle_exit_was_decided_does_not_wait_for_anything(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(idle=60)
        world.pool.ask(key, duration_s=0.1)
        await asyncio.sleep(60.2 + 0.001)
        assert world.autoscaler.describe(key)[0].state is ReplicaState.DRAINING
        (request,) = world.pool.ask(key, duration_s=0.1)
        await asyncio.sleep(0)
        assert len(world.driver.ordered) == 2
        assert world.driver.ordered_at_ns[-1] == request.asked_ns


async def test_idle_zero_lets_the_replica_go_as_soon_as_it_is_seen_without_work(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(idle=0)
        (request,) = world.pool.ask(key, duration_s=0.5)
        await asyncio.sleep(0.7)
        assert request.answered_ns
        assert world.autoscaler.describe(key) == []


async def test_burst_from_zero_grows_to_what_arrived_and_every_request_is_answered(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(idle=60, max=8)
        requests = world.pool.ask(key, duration_s=5.0, count=20)
        await asyncio.sleep(2)
        assert len(world.pool.open_replicas(key)) == 8
        await asyncio.sleep(20)
        assert all(request.answered_ns for request in requests)
        assert "max is 8" in "".join(world.reasons())


async def test_never_more_replicas_than_requests_were_there_at_one_time(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(idle=60)
        for _ in range(40):
            (request,) = world.pool.ask(key, duration_s=0.5)
            await asyncio.sleep(0.61)
            assert request.answered_ns
        assert world.steps() == [(0, 1)], "one caller that sends back to back needs one replica"


async def test_panic_holds_every_replica_until_a_stable_window_after_the_burst(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(idle=600, stable_window=60, panic_window=6)
        world.pool.ask(key, duration_s=4.0, count=6)
        await asyncio.sleep(3)
        assert len(world.pool.open_replicas(key)) == 6
        assert any("burst" in reason for reason in world.reasons())
        await asyncio.sleep(50)
        assert len(world.pool.open_replicas(key)) == 6, "panic takes nothing away"
        await asyncio.sleep(100)
        assert len(world.pool.open_replicas(key)) == 1, "the last one waits for idle"
        assert world.steps()[-2:] == [(6, 3), (3, 1)], "half at a time"
        await asyncio.sleep(600)
        assert world.running() == []


async def test_shrinking_takes_only_replicas_that_run_nothing(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(idle=600, stable_window=10, panic_window=1)
        world.pool.ask(key, duration_s=200.0, count=2)
        world.pool.ask(key, duration_s=2.0, count=4)
        await asyncio.sleep(100)
        assert len(world.running()) == 2
        assert not world.driver.kills
        busy = [name for name, slot in world.pool.replicas.items() if slot.outstanding]
        assert sorted(busy) == sorted(world.running())


async def test_min_replicas_run_without_any_request_and_come_back_after_a_crash(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(min=2, idle=60)
        await asyncio.sleep(1)
        assert len(world.pool.open_replicas(key)) == 2
        assert world.reasons() == ["min is 2: 0 → 2"]
        await asyncio.sleep(1000)
        assert len(world.running()) == 2
        assert world.timers() == 0
        world.driver.crash(world.running()[0])
        await asyncio.sleep(1)
        assert len(world.pool.open_replicas(key)) == 2


async def test_request_that_left_before_anyone_looked_still_wakes_the_model(tmp_path: Path) -> None:
    """`Prefer: wait=0` means: start it, I come back."""
    async with a_world(tmp_path) as world:
        key = world.add()
        (request,) = world.pool.ask(key, duration_s=0.1, wait_s=0)
        assert isinstance(request.error, QueueTimeout)
        await asyncio.sleep(1)
        assert len(world.pool.open_replicas(key)) == 1
        assert world.reasons()[0] == "1 request came and could not wait, and no replica runs: 0 → 1"


async def test_replica_whose_callers_all_left_while_it_started_goes_when_idle_time_is_over(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(idle=30)
        world.driver.behaviour("digits").load_s = 100
        world.pool.ask(key, duration_s=1)
        await asyncio.sleep(5)
        world.pool.give_up(key)
        await asyncio.sleep(29.9)
        assert len(world.running()) == 1
        await asyncio.sleep(0.2)
        assert world.running() == []
        assert world.pool.gone[0].reason is ExitReason.STOPPED


async def test_revision_without_route_goes_to_zero_whatever_its_min_once_its_requests_are_answered(
    tmp_path: Path,
) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(min=2, idle=600)
        await asyncio.sleep(1)
        (request,) = world.pool.ask(key, duration_s=20)
        world.autoscaler.set_reachable(key, False)
        await asyncio.sleep(10)
        assert world.pool.gates[key].in_flight == 1
        assert len(world.running()) == 1
        await asyncio.sleep(12)
        assert request.answered_ns
        assert world.running() == []
        world.autoscaler.set_reachable(key, True)
        await asyncio.sleep(1)
        assert len(world.running()) == 2


async def test_report_of_idleness_is_acted_on_without_waiting_for_the_next_reading(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(idle=600, panic_window=60)
        world.pool.ask(key, duration_s=3)
        await asyncio.sleep(1)
        world.autoscaler.set_reachable(key, False)
        await asyncio.sleep(2.2)
        (replica,) = world.running()
        world.stats(replica, peak_mib=40)
        await asyncio.sleep(0.02)
        assert world.running() == []


async def test_cold_starts_are_told_by_phase(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(idle=5)
        assert world.autoscaler.expected_cold_start_s(key) is None
        for _ in range(3):
            world.pool.ask(key, duration_s=0.1)
            await asyncio.sleep(20)
        history = world.autoscaler.cold_start_history(key)
        assert history.count == 3
        assert history.total_ms["p50"] == pytest.approx(100, abs=0.1)
        assert history.phases_ms[Phase.SPAWN]["p95"] == pytest.approx(10, abs=0.1)
        assert history.phases_ms[Phase.LOAD]["p50"] == pytest.approx(90, abs=0.1)
        assert world.autoscaler.expected_cold_start_s(key) == pytest.approx(0.1, abs=0.001)
        text = world.metrics.exposition(world.clock.monotonic_ns()).decode()
        assert 'serve_cold_start_phase_seconds_count{phase="load"} 3.0' in text
        assert 'serve_replica_exits_total{reason="drained"} 3.0' in text
        assert 'serve_replicas{deployment="digits",state="ready"} 0.0' in text
        assert "serve_reserved_memory_bytes 0.0" in text


async def test_ten_thousand_idle_deployments_hold_no_timer_and_are_never_read(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        keys = [world.add(f"model-{number}") for number in range(10_000)]
        await asyncio.sleep(3600)
        assert world.timers() == 0
        assert world.pool.readings == 0
        (request,) = world.pool.ask(keys[5000], duration_s=0.1)
        await asyncio.sleep(1)
        assert request.answered_ns
        assert world.timers() == 1, "one timer for everything that is awake"
        await asyncio.sleep(120)
        assert world.timers() == 0


async def test_storm_of_pokes_costs_one_decision_in_a_while(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(max=1)
        world.pool.ask(key, duration_s=100)
        await asyncio.sleep(1)
        before = world.pool.readings
        for _ in range(10_000):
            world.autoscaler.poke(key)
        assert world.pool.readings - before <= 1
        await asyncio.sleep(0.05)
        assert world.pool.readings - before <= 3


async def test_poke_of_an_unknown_revision_is_harmless(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.autoscaler.poke(RevisionKey("nobody", 1))
        assert world.autoscaler.state_of(RevisionKey("nobody", 1)) is State.COLD
        assert world.autoscaler.describe(RevisionKey("nobody", 1)) == []


async def test_decisions_are_dated_numbered_and_bounded(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(idle=1)
        for _ in range(150):
            world.pool.ask(key, duration_s=0.1)
            await asyncio.sleep(5)
        records = world.autoscaler.decisions("digits")
        assert len(records) == 200
        assert all(later.wall_ns > earlier.wall_ns for earlier, later in itertools.pairwise(records))
        assert records[-1].key == key
        assert (records[-1].replicas_before, records[-1].replicas_after) == (1, 0)
        assert records[-1].wall_ns - records[0].wall_ns < 1000 * NS_PER_S
