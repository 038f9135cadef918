"""One budget of memory for all: admission, eviction, waiting, learning. Virtual time."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import subprocess
from pathlib import Path

import pytest

from autoscaler.claims import SLACK_BYTES, credible_bytes
from autoscaler.fleet import Fleet, folder_bytes
from serve.core.clock import NS_PER_S
from serve.core.errors import NoCapacity, PublishError
from serve.core.events import ExitReason, Failed
from tests.autoscaler.world import MIB, World, a_world

pytestmark = pytest.mark.looptime


async def test_two_models_on_a_budget_of_one_take_turns_and_everyone_is_answered(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=60) as world:
        cat, dog = world.add("cat"), world.add("dog")
        for _ in range(5):
            (first,) = world.pool.ask(cat, duration_s=0.2)
            await asyncio.sleep(1)
            (second,) = world.pool.ask(dog, duration_s=0.2)
            await asyncio.sleep(1)
            assert first.answered_ns
            assert second.answered_ns
            assert len(world.driver.processes) == 1
        assert {exited.reason for exited in world.pool.gone} == {ExitReason.DRAINED}
        assert any("makes place for dog-r1" in reason for reason in world.reasons("cat"))
        assert "40 MiB are needed, 40 MiB of 60 MiB are taken" in world.reasons("cat")[1]


async def test_busy_replica_is_never_evicted_and_who_waits_is_served_when_it_is_done(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=60) as world:
        cat, dog = world.add("cat"), world.add("dog")
        (long,) = world.pool.ask(cat, duration_s=30)
        await asyncio.sleep(1)
        (waiting,) = world.pool.ask(dog, duration_s=0.2)
        await asyncio.sleep(28)
        assert world.pool.gates[cat].in_flight == 1
        assert world.running("dog") == []
        assert [reason for reason in world.reasons("dog") if "waits for memory" in reason] == [
            "waits for memory: 40 MiB are needed, 40 MiB of 60 MiB are taken and only 0 MiB of that are idle: "
            "requests queue",
            "waits for memory: 40 MiB are needed, 40 MiB of 60 MiB are taken; 40 MiB are being given back",
        ], "each said once, not at every look"
        await asyncio.sleep(5)
        assert long.answered_ns
        assert waiting.answered_ns
        assert not world.driver.kills


async def test_report_of_a_replica_that_became_idle_lets_the_next_in_without_waiting_for_a_timer(
    tmp_path: Path,
) -> None:
    async with a_world(tmp_path, budget_mib=60) as world:
        cat, dog = world.add("cat"), world.add("dog", panic_window=60)
        world.pool.ask(cat, duration_s=10)
        await asyncio.sleep(5)
        world.pool.ask(dog, duration_s=0.2)
        await asyncio.sleep(0.001)
        (holder,) = world.running("cat")
        world.driver.processes[holder].replica.answer([1])
        await world.settle()
        world.stats(holder, peak_mib=40)
        await asyncio.sleep(0.02)
        assert world.running("cat") == []
        assert len(world.driver.ordered) == 2


async def test_those_who_wait_for_memory_are_served_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=60) as world:
        keys = [world.add(name) for name in ("holder", "first", "second", "third")]
        world.pool.ask(keys[0], duration_s=5)
        await asyncio.sleep(1)
        requests = [world.pool.ask(key, duration_s=0.5)[0] for key in keys[1:]]
        await asyncio.sleep(20)
        answered = [request.answered_ns for request in requests]
        assert all(answered)
        assert answered == sorted(answered)


async def test_min_replicas_of_others_are_not_taken_to_make_place(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=60) as world:
        kept = world.add("kept", min=1)
        await asyncio.sleep(1)
        guest = world.add("guest")
        (request,) = world.pool.ask(guest, duration_s=0.1)
        await asyncio.sleep(10)
        assert not request.answered_ns
        assert len(world.pool.open_replicas(kept)) == 1
        world.pool.give_up(guest)


async def test_least_valuable_idle_replica_goes_first(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=90) as world:
        often, rarely, newcomer = world.add("often"), world.add("rarely"), world.add("newcomer")
        for _ in range(10):
            world.pool.ask(often, duration_s=0.05)
            await asyncio.sleep(0.2)
        world.pool.ask(rarely, duration_s=0.05)
        await asyncio.sleep(1)
        (request,) = world.pool.ask(newcomer, duration_s=0.05)
        await asyncio.sleep(1)
        assert request.answered_ns
        assert world.running("often")
        assert not world.running("rarely")


async def test_use_is_forgotten_with_the_last_replica(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=90) as world:
        once_popular, steady, newcomer = world.add("once-popular", idle=5), world.add("steady"), world.add("newcomer")
        world.pool.ask(once_popular, duration_s=0.05, count=20)
        await asyncio.sleep(30)
        assert world.running("once-popular") == []
        world.pool.ask(steady, duration_s=0.05)
        await asyncio.sleep(1)
        world.pool.ask(steady, duration_s=0.05)
        world.pool.ask(once_popular, duration_s=0.05)
        await asyncio.sleep(1)
        world.pool.ask(newcomer, duration_s=0.05)
        await asyncio.sleep(1)
        assert world.running("steady")
        assert not world.running("once-popular")


async def test_requests_nobody_has_read_yet_count_when_a_victim_is_chosen(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=90) as world:
        recent, other = world.add("recent", concurrency=20), world.add("other", concurrency=20)
        newcomer = world.add("newcomer")
        for _ in range(4):
            world.pool.ask(other, duration_s=0.01)
            await asyncio.sleep(2)
        world.pool.ask(recent, duration_s=0.01)
        await asyncio.sleep(5)
        for _ in range(10):
            world.pool.ask(recent, duration_s=0.01)
            await asyncio.sleep(0.02)
        world.pool.ask(newcomer, duration_s=0.01)
        await asyncio.sleep(1)
        assert world.running("recent")
        assert not world.running("other")


async def test_what_was_used_often_but_long_ago_loses_against_what_is_used_now(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=90) as world:
        old = world.add("old", idle=36_000)
        for _ in range(6):
            world.pool.ask(old, duration_s=0.05)
            await asyncio.sleep(1)
        survived = 0
        for number in range(20):
            world.pool.ask(world.add(f"new-{number}"), duration_s=0.05)
            await asyncio.sleep(1)
            survived += len(world.running("old"))
        assert survived >= 3, "its past use counted for a while"
        assert not world.running("old"), "but not for ever"


async def test_replica_held_for_publishing_is_not_evicted(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=60) as world:
        held, guest = world.add("held", reachable=False), world.add("guest")
        await world.autoscaler.warm(held)
        (request,) = world.pool.ask(guest, duration_s=0.1)
        await asyncio.sleep(10)
        assert world.running("held")
        world.autoscaler.release(held)
        await asyncio.sleep(1)
        assert request.answered_ns


async def test_reading_a_revision_as_a_candidate_does_not_lose_its_burst(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        revision = world.revision()
        fleet = Fleet(revision, is_reachable=True, now_ns=0, chance=random.Random(1))
        for request in world.pool.ask(revision.key, duration_s=1, count=7):
            request.leave()
        fleet.read(world.pool, world.clock.monotonic_ns(), age=0.0)
        assert fleet.observe(world.pool, world.clock.monotonic_ns(), age=0.0).demand.peak == 7
        assert fleet.observe(world.pool, world.clock.monotonic_ns(), age=0.0).demand.peak == 0


async def test_model_larger_than_the_whole_budget_is_refused_with_figures(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=60) as world:
        key = world.add("giant", memory_mib=100)
        (request,) = world.pool.ask(key, duration_s=0.1)
        assert isinstance(request.error, NoCapacity)
        assert "one replica needs 100 MiB and all replicas together may hold 60 MiB" in str(request.error)
        with pytest.raises(PublishError, match=r"100 MiB.*60 MiB"):
            await world.autoscaler.warm(key)
        await asyncio.sleep(10)
        assert world.driver.ordered == []
        assert world.timers() == 0


async def test_publishing_refuses_a_model_that_turns_out_larger_than_the_budget(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=100) as world:
        key = world.add(memory_mib=0, reachable=False)
        world.driver.behaviour("digits").peak_bytes = 500 * MIB
        with pytest.raises(PublishError, match="one replica needs 500 MiB"):
            await world.autoscaler.warm(key)
        await asyncio.sleep(1)
        assert world.running() == []


async def test_unknown_memory_is_estimated_until_the_first_replica_is_measured(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(memory_mib=0)
        world.pool.ask(key, duration_s=0.1)
        assert world.autoscaler.describe(key)[0].memory_bytes == 64 * MIB
        await asyncio.sleep(1)
        assert world.autoscaler.describe(key)[0].memory_bytes == 40 * MIB
        assert world.learned == [(key, 40 * MIB)]
        assert reserved(world) == 40 * MIB


async def test_memory_is_learned_again_when_a_replica_holds_more_and_never_unlearned(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(memory_mib=40)
        world.pool.ask(key, duration_s=0.1)
        await asyncio.sleep(1)
        (replica,) = world.running()
        world.stats(replica, peak_mib=55)
        world.stats(replica, peak_mib=45)
        assert world.learned == [(key, 55 * MIB)]
        assert world.autoscaler.describe(key)[0].memory_bytes == 55 * MIB
        assert reserved(world) == 55 * MIB


async def test_growth_over_the_budget_is_paid_by_idle_replicas(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=90) as world:
        cat, dog = world.add("cat"), world.add("dog")
        world.pool.ask(cat, duration_s=0.1)
        await asyncio.sleep(1)
        world.pool.ask(dog, duration_s=100)
        await asyncio.sleep(1)
        assert len(world.driver.processes) == 2
        world.stats(world.running("dog")[0], peak_mib=70)
        await asyncio.sleep(1)
        assert world.running("cat") == []
        assert "goes because dog-r1 turned out to need 70 MiB" in world.reasons("cat")[-1]


async def test_size_of_a_model_counts_every_file_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"x" * 100)
    (tmp_path / "weights" / "part").write_bytes(b"x" * 900)
    assert folder_bytes(tmp_path) == 1000
    assert folder_bytes(tmp_path / "missing") == 0


def reserved(world: World) -> float:
    value = world.metrics.registry.get_sample_value("serve_reserved_memory_bytes")
    assert value is not None
    return value


async def test_a_large_model_gets_its_turn_though_small_ones_always_fit(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=100) as world:
        small = [world.add(f"small{number}", memory_mib=40, idle=0) for number in range(4)]
        large = world.add("large", memory_mib=90)
        for key in small[:2]:
            world.pool.ask(key, duration_s=4)
        await asyncio.sleep(1)
        (waiting,) = world.pool.ask(large, duration_s=1)
        others = []
        for turn in range(60):  # there are always two small ones, and a third to follow each
            others += world.pool.ask(small[turn % 4], duration_s=4)
            await asyncio.sleep(1)
            if waiting.answered_ns:
                break
        assert waiting.answered_ns
        assert 10 < world.now_s() < 25
        await asyncio.sleep(300)
        assert all(request.answered_ns for request in others)
        assert {exited.reason for exited in world.pool.gone} == {ExitReason.DRAINED}


async def test_two_deployments_that_do_not_fit_together_alternate_though_both_are_always_asked(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=60) as world:
        keys = [world.add(name, concurrency=4, max=1) for name in ("cat", "dog")]
        requests = []
        for _ in range(240):  # each always has two inside or waiting
            for key in keys:
                requests += world.pool.ask(key, duration_s=1)
            await asyncio.sleep(0.5)
        turns = [replica.split("-")[0] for replica in world.driver.ordered]
        assert turns == ["cat", "dog"] * (len(turns) // 2) + ["cat"] * (len(turns) % 2)
        assert 6 <= len(turns) <= 12, "each serves for a while: what it costs to alternate is bounded"
        await asyncio.sleep(100)
        assert all(request.answered_ns for request in requests)
        assert not world.driver.kills, "what is inside finishes"
        assert max(request.answered_ns - request.asked_ns for request in requests) < 40 * NS_PER_S


async def test_a_replica_that_min_promises_gives_way_to_nobody(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=60) as world:
        cat, dog = world.add("cat", min=1, concurrency=4), world.add("dog")
        (waiting,) = world.pool.ask(dog, duration_s=1)
        for _ in range(60):
            world.pool.ask(cat, duration_s=1)
            await asyncio.sleep(0.5)
        assert not waiting.answered_ns
        assert len(world.driver.ordered) == 1
        world.pool.give_up(dog)


async def test_who_waits_in_vain_for_more_than_one_replica_holds_nobody_up(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=100) as world:
        many, other = world.add("many", memory_mib=70), world.add("other", memory_mib=20)
        world.pool.ask(many, duration_s=30, count=10)
        await asyncio.sleep(20)
        (asked,) = world.pool.ask(other, duration_s=1)
        await asyncio.sleep(2)
        assert asked.answered_ns
        assert len(world.driver.ordered) == 2
        await asyncio.sleep(400)


async def test_a_replica_killed_for_memory_gets_more_next_time_up_to_the_whole_budget(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=100) as world:
        key = world.add(min=1)
        reserved = []
        for _ in range(5):
            await world.until(lambda: any(process.is_ready for process in world.driver.processes.values()))
            (status,) = world.autoscaler.describe(key)
            reserved.append(status.memory_bytes // MIB)
            world.driver.end(world.driver.processes[status.id], ExitReason.OUT_OF_MEMORY, "memory ran out")
        assert reserved == [40, 60, 90, 100, 100]
        assert any(
            "it was given 60 MiB, the next one is given 90 MiB of the 100 MiB" in reason for reason in world.reasons()
        )
        assert world.learned == [], "what it needs was not measured: the registry is told nothing"


async def test_a_model_that_does_not_load_for_want_of_memory_gets_more_next_time(tmp_path: Path) -> None:
    async with a_world(tmp_path, budget_mib=100) as world:
        behaviour = world.driver.behaviour("digits")
        behaviour.fails = Failed(0, "out_of_memory", "'model' does not fit into the memory of this machine")
        key = world.add(memory_mib=50)
        world.pool.ask(key, duration_s=1)
        await world.until(lambda: len(world.driver.ordered) == 3)
        (status,) = world.autoscaler.describe(key)
        assert status.memory_bytes == 100 * MIB
        behaviour.fails = None
        await asyncio.sleep(70)


async def test_an_absurd_claim_of_a_replica_counts_as_what_the_kernel_saw(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.driver._pid = os.getpid() + 1
        world.driver.behaviour("liar").peak_bytes = 10**30
        liar, other = world.add("liar"), world.add("other")
        (asked,) = world.pool.ask(liar, duration_s=0.1)
        await asyncio.sleep(1)
        world.stats(world.running("liar")[0], peak_mib=10**24)
        await asyncio.sleep(1)
        assert asked.answered_ns
        assert world.learned
        most_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + SLACK_BYTES + 2 * MIB
        assert all(size_bytes <= most_bytes for _, size_bytes in world.learned)
        (other_asked,) = world.pool.ask(other, duration_s=0.1)
        await asyncio.sleep(1)
        assert other_asked.answered_ns
        world.driver._pid = -2000


def test_the_last_claim_of_a_process_that_ended_is_no_news() -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert credible_bytes(child.pid, 10**30) == 0, "a zombie"
    assert credible_bytes(child.pid, 10**30) == 0
    assert credible_bytes(os.getpid(), 1000) == 1000
