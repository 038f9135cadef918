"""What goes wrong: starts that fail, processes that die, hang or will not leave. Virtual time."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from autoscaler.backoff import EXCUSED_KILLS
from autoscaler.replica import ReplicaState
from autoscaler.scaler import FAILURES_UNTIL_FAILED
from serve.core.clock import NS_PER_S
from serve.core.errors import FilesMissing, ModelFailed, ModelInvalid, ModelUnsupported, PublishError
from serve.core.events import ExitReason, Failed
from serve.core.ids import ReplicaId, RevisionKey
from serve.core.revision import State
from tests.autoscaler.world import World, a_world

pytestmark = pytest.mark.looptime


async def test_crash_of_a_busy_replica_is_replaced_at_once_and_its_request_answered(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(idle=60)
        (request,) = world.pool.ask(key, duration_s=1)
        await asyncio.sleep(0.5)
        (crashed,) = world.running()
        world.driver.crash(crashed)
        await asyncio.sleep(0)
        assert world.driver.ordered_at_ns[-1] == world.clock.monotonic_ns()
        await asyncio.sleep(1.2)
        assert request.answered_ns
        assert request.replica != crashed
        assert f"{crashed} was ended by signal SIGSEGV" in world.reasons()


async def test_a_replica_lost_right_after_it_answered_is_not_replaced(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(idle=60)
        world.pool.ask(key, duration_s=0.1)
        await asyncio.sleep(10)
        for _ in range(5):
            (request,) = world.pool.ask(key, duration_s=0.01)
            await asyncio.sleep(0.02)
            assert request.answered_ns
        world.driver.crash(world.running()[0])
        await asyncio.sleep(10)
        assert len(world.driver.ordered) == 1, "\n".join(world.reasons())


async def test_crash_without_any_request_is_not_replaced(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(idle=60)
        world.pool.ask(key, duration_s=0.1)
        await asyncio.sleep(10)
        world.driver.crash(world.running()[0])
        await asyncio.sleep(10)
        assert world.running() == []
        assert world.timers() == 0


async def test_replica_that_keeps_crashing_is_replaced_more_and_more_slowly(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.add(min=1)
        started: list[int] = []
        for _ in range(6):
            await world.until(lambda: any(process.is_ready for process in world.driver.processes.values()))
            started.append(world.driver.ordered_at_ns[-1])
            world.driver.crash(world.running()[0])
        pauses = [later - earlier for earlier, later in itertools.pairwise(started)]
        assert pauses[0] < 0.2 * NS_PER_S, "the first crash is replaced at once"
        assert pauses[-1] > 0.8 * NS_PER_S


async def test_ready_replicas_that_somebody_else_kills_are_each_replaced_at_once(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.add(min=1)
        for _ in range(20):
            await world.until(lambda: any(process.is_ready for process in world.driver.processes.values()))
            world.driver.kill_from_outside(world.running()[0])
            killed_ns = world.clock.monotonic_ns()
            await world.until(lambda: bool(world.running()))
            assert world.driver.ordered_at_ns[-1] == killed_ns


async def test_starts_that_somebody_else_kills_are_no_failures_of_the_model_until_there_are_too_many(
    tmp_path: Path,
) -> None:
    async with a_world(tmp_path) as world:
        key = world.add()
        (request,) = world.pool.ask(key, duration_s=0.1)
        for _ in range(EXCUSED_KILLS):
            await world.until(lambda: bool(world.running()))
            world.driver.kill_from_outside(world.running()[0])
            assert world.autoscaler.state_of(key) is not State.FAILED
        await asyncio.sleep(2)
        assert request.answered_ns, "the next start was let live"
        gaps = [b - a for a, b in itertools.pairwise(world.driver.ordered_at_ns)]
        assert max(gaps) <= 0.3 * NS_PER_S


async def test_a_model_whose_every_start_is_killed_is_left_alone_in_the_end(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add()
        (request,) = world.pool.ask(key, duration_s=0.1)
        while request.error is None:
            await world.until(lambda: bool(world.running()) or request.error is not None)
            for replica in world.running():
                world.driver.kill_from_outside(replica)
        assert isinstance(request.error, ModelFailed)
        assert len(world.driver.ordered) == EXCUSED_KILLS + FAILURES_UNTIL_FAILED


async def test_load_failures_back_off_then_the_revision_fails_and_tells_everyone_when_to_come_back(
    tmp_path: Path,
) -> None:
    async with a_world(tmp_path) as world:
        key = world.add()
        world.driver.behaviour("digits").fails = Failed(0, "load_error", "The model needs an operator nobody has.")
        (request,) = world.pool.ask(key, duration_s=0.1)
        await asyncio.sleep(3)
        assert len(world.driver.ordered) == 3
        assert isinstance(request.error, ModelFailed)
        assert "The model needs an operator nobody has." in str(request.error)
        assert request.error.retry_after_s
        assert request.error.retry_after_s > 0.3
        assert world.autoscaler.state_of(key) is State.FAILED
        assert "operator" in (world.autoscaler.failure_of(key) or "")
        gaps = [b - a for a, b in itertools.pairwise(world.driver.ordered_at_ns)]
        assert 0.1 * NS_PER_S <= gaps[0] - 0.1 * NS_PER_S <= 0.2 * NS_PER_S
        assert 0.2 * NS_PER_S <= gaps[1] - 0.1 * NS_PER_S <= 0.4 * NS_PER_S
        await asyncio.sleep(600)
        assert len(world.driver.ordered) == 3, "nothing is tried again before somebody asks"
        assert world.timers() == 0


async def test_arrivals_refused_with_the_failure_are_no_reason_for_another_try(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add()
        behaviour = world.driver.behaviour("digits")
        behaviour.dies_loading, behaviour.spawn_s, behaviour.load_s = True, 0.001, 0.009
        world.pool.ask(key, duration_s=0.1)
        for _ in range(1000):
            await asyncio.sleep(0.001)
            if len(world.driver.ordered) == 3:
                break
        (late,) = world.pool.ask(key, duration_s=0.1)
        await asyncio.sleep(0.02)
        assert isinstance(late.error, ModelFailed)
        world.pool.ask(key, duration_s=0.1)
        await asyncio.sleep(600)
        assert len(world.driver.ordered) == 3


async def test_failed_starts_beside_a_ready_replica_do_not_fail_the_revision(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(min=1, max=2)
        await asyncio.sleep(1)
        world.driver.behaviour("digits").dies_loading = True
        requests = world.pool.ask(key, duration_s=4, count=5)
        await asyncio.sleep(15)
        assert fleet_failures(world) >= 3
        assert world.autoscaler.failure_of(key) is None
        assert world.autoscaler.state_of(key) is State.READY
        await asyncio.sleep(10)
        assert all(request.answered_ns for request in requests), "the one that runs answers them all"


async def test_success_makes_earlier_failures_forgotten(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(idle=1)
        for _ in range(2):
            world.driver.behaviour("digits").dies_loading = True
            failed_before = fleet_failures(world)
            (request,) = world.pool.ask(key, duration_s=0.1)
            await world.until(lambda failed_before=failed_before: fleet_failures(world) == failed_before + 2)  # type: ignore[misc]
            world.driver.behaviour("digits").dies_loading = False
            await asyncio.sleep(5)
            assert request.answered_ns
            assert world.autoscaler.failure_of(key) is None


async def test_failed_revision_refuses_at_once_during_its_pause_and_recovers_with_new_demand_after_it(
    tmp_path: Path,
) -> None:
    async with a_world(tmp_path) as world:
        key = world.add()
        world.driver.behaviour("digits").dies_loading = True
        world.pool.ask(key, duration_s=0.1)
        await world.until(lambda: world.autoscaler.state_of(key) is State.FAILED)
        (refused,) = world.pool.ask(key, duration_s=0.1)
        assert isinstance(refused.error, ModelFailed)
        assert "exit status 1" in str(refused.error)
        assert len(world.driver.ordered) == 3
        world.driver.behaviour("digits").dies_loading = False
        await asyncio.sleep(2)
        (answered,) = world.pool.ask(key, duration_s=0.1)
        await asyncio.sleep(1)
        assert answered.answered_ns
        assert world.autoscaler.state_of(key) is State.READY
        assert world.autoscaler.failure_of(key) is None


async def test_pauses_grow_to_a_minute_and_no_further(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.add(min=1)
        world.driver.behaviour("digits").dies_loading = True
        await asyncio.sleep(1000)
        gaps_s = [(b - a) / NS_PER_S for a, b in itertools.pairwise(world.driver.ordered_at_ns)]
        assert len(world.driver.ordered) < 60
        assert 29 < max(gaps_s) <= 60.2


async def test_driver_that_cannot_start_anything_counts_as_a_failed_start(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add()
        world.driver.behaviour("digits").cannot_spawn = "the zygote is gone; see `serve logs`"
        (request,) = world.pool.ask(key, duration_s=0.1)
        await asyncio.sleep(3)
        assert isinstance(request.error, ModelFailed)
        assert "the zygote is gone" in str(request.error)
        assert world.pool.gone == [], "no life began, so none ended"


async def test_replica_that_is_not_ready_in_time_is_killed_and_says_so(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(start_timeout=7)
        world.driver.behaviour("digits").never_ready = True
        world.pool.ask(key, duration_s=0.1)
        await asyncio.sleep(6.9)
        assert not world.driver.kills
        await asyncio.sleep(0.2)
        assert world.driver.kills == [(world.driver.ordered[0], ExitReason.START_TIMEOUT)]
        assert world.pool.gone[0].reason is ExitReason.START_TIMEOUT
        assert "did not become ready" in world.reasons()[-1]


async def test_driver_that_hangs_is_called_off_at_the_start_deadline_and_tried_again(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(start_timeout=7)
        world.driver.behaviour("digits").spawn_s = 10_000
        (request,) = world.pool.ask(key, duration_s=0.1)
        await asyncio.sleep(7.01)
        assert "no process within start_timeout (7 s)" in world.reasons()[-1]
        world.driver.behaviour("digits").spawn_s = 0.01
        await asyncio.sleep(1)
        assert request.answered_ns


async def test_request_that_takes_too_long_gets_its_replica_killed(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add()
        world.pool.ask(key, duration_s=1000)
        await asyncio.sleep(1)
        (replica,) = world.running()
        world.autoscaler.replica_overdue(ReplicaId(replica), "a request took longer than execution_timeout (1 s)")
        await asyncio.sleep(0.01)
        assert world.pool.gone[0].reason is ExitReason.EXECUTION_TIMEOUT
        assert f"{replica} was killed by the platform (execution_timeout)" in world.reasons()
        world.pool.give_up(key)


async def test_replica_that_is_being_killed_is_not_retired_as_well(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add()
        world.pool.ask(key, duration_s=0.1)
        await asyncio.sleep(1)
        world.autoscaler.replica_overdue(ReplicaId(world.running()[0]), "a request took too long")
        world.autoscaler.set_reachable(key, False)
        assert world.autoscaler.describe(key)[0].state is ReplicaState.READY
        await asyncio.sleep(0.01)
        assert world.pool.gone[0].reason is ExitReason.EXECUTION_TIMEOUT


async def test_process_that_outlives_its_socket_is_killed_after_a_grace(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(min=1)
        await asyncio.sleep(1)
        (replica,) = world.running()
        world.autoscaler.replica_link_lost(ReplicaId(replica))
        await asyncio.sleep(0.9)
        assert world.running() == [replica]
        await asyncio.sleep(0.3)
        assert world.pool.gone[0].reason is ExitReason.CRASHED
        assert world.pool.open_replicas(key)
        assert world.running() != [replica]


async def test_replica_that_will_not_drain_is_killed_after_the_drain_timeout(tmp_path: Path) -> None:
    async with a_world(tmp_path, drain_timeout_s=12) as world:
        key = world.add(idle=5)
        world.driver.behaviour("digits").never_drains = True
        world.pool.ask(key, duration_s=0.1)
        await asyncio.sleep(5.3)
        assert world.autoscaler.describe(key)[0].state is ReplicaState.DRAINING
        await asyncio.sleep(11.8)
        assert world.running()
        await asyncio.sleep(0.4)
        assert world.pool.gone[0].reason is ExitReason.STOPPED


async def test_replica_is_told_to_drain_once_and_only_after_it_was_retired(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        world.add(min=1)
        await asyncio.sleep(1)
        (replica,) = world.running()
        world.autoscaler.replica_empty(ReplicaId(replica))
        assert world.driver.drains == []
        removing = asyncio.ensure_future(world.autoscaler.remove(RevisionKey("digits", 1)))
        await asyncio.sleep(0.001)
        world.autoscaler.replica_empty(ReplicaId(replica))
        await removing
        assert world.driver.drains == [replica]


async def test_new_request_while_the_last_replica_drains_starts_another(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(idle=5)
        world.driver.behaviour("digits").drain_s = 3
        world.pool.ask(key, duration_s=0.1)
        await asyncio.sleep(5.3)
        (request,) = world.pool.ask(key, duration_s=0.1)
        await asyncio.sleep(1)
        assert request.answered_ns
        assert len(world.running()) == 2


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("model_invalid", ModelInvalid),
        ("model_unsupported", ModelUnsupported),
        ("model_files_missing", FilesMissing),
        ("out_of_memory", PublishError),
    ],
)
async def test_publishing_hears_why_a_model_does_not_load_and_nothing_is_tried_again(
    tmp_path: Path, code: str, error: type[PublishError]
) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(reachable=False)
        world.driver.behaviour("digits").fails = Failed(0, code, "Opset 99 is newer than this ONNX Runtime.")
        with pytest.raises(PublishError) as caught:
            await world.autoscaler.warm(key)
        assert type(caught.value) is error
        assert str(caught.value) == "Opset 99 is newer than this ONNX Runtime."
        await asyncio.sleep(60)
        assert len(world.driver.ordered) == 1
        assert world.autoscaler.state_of(key) is State.COLD
        await world.autoscaler.remove(key)


async def test_publishing_hears_the_exit_of_a_process_that_died_without_a_word(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(reachable=False)
        world.driver.behaviour("digits").dies_loading = True
        with pytest.raises(PublishError, match="exit status 1"):
            await world.autoscaler.warm(key)


def fleet_failures(world: World) -> int:
    """Return how many starts of the deployment failed so far."""
    return sum("did not become ready" in reason for reason in world.reasons())


async def test_one_seed_gives_one_run_with_the_same_replica_ids_and_pauses(tmp_path: Path) -> None:
    async def run(seed: int) -> list[tuple[str, int]]:
        async with a_world(tmp_path, seed=seed) as world:
            world.driver.behaviour("digits").dies_loading = True
            world.add(min=1)
            began_ns = world.clock.monotonic_ns()
            await world.until(lambda: len(world.driver.ordered) == 5)
            pauses = [at_ns - began_ns for at_ns in world.driver.ordered_at_ns]
            return list(zip(world.driver.ordered, pauses, strict=True))

    once, again, other = await run(1), await run(1), await run(2)
    assert once == again
    assert once != other
