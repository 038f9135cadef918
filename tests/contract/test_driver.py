"""The contract of a driver, held by every driver: how replicas start, what is heard of them, how they end."""

# Nobody else is on the loop while a test looks into /proc:
# ruff: noqa: ASYNC110, ASYNC220, ASYNC222, ASYNC240, ASYNC251

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from autoscaler.drivers.base import Driver, DriverError
from autoscaler.drivers.exec import ExecDriver
from autoscaler.drivers.local import LocalDriver
from serve.core.events import Drained, ExitReason, Failed, Phase, PhaseDone
from serve.core.ids import ReplicaId
from tests.contract.replicas import Caller, Observer, children_of_ours, scripted, wait_dead

pytestmark = [pytest.mark.contract, pytest.mark.asyncio(loop_factories=["uvloop"])]
both_loops = pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])
ID = ReplicaId("echo-r1-aaaaaaaa")
ROW = (1.0, 2.0, 3.0, 4.0)


def new_driver(kind: str, home: Path) -> Driver:
    return LocalDriver(home, flavour="bare") if kind == "local" else ExecDriver(home)


def open_descriptors() -> Counter[str]:
    """Return how many descriptors of which kind are open, but for /dev/null, which uvloop opens once."""
    kinds: Counter[str] = Counter()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            kinds[str(path.readlink()).split(":[")[0]] += 1
    del kinds["/dev/null"]
    return kinds


@pytest.fixture(params=["local", "exec"])
async def driver(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Driver]:
    """An open driver; when it is closed, no child and no descriptor of it is left."""
    before = children_of_ours()
    descriptors = open_descriptors()
    driver = new_driver(request.param, tmp_path)
    await driver.open()
    yield driver
    await driver.close()
    gc.collect()
    async with asyncio.timeout(1):  # transports close in later turns
        while open_descriptors() - descriptors:
            await asyncio.sleep(0.01)
    assert children_of_ours() == before


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "replicas" / "echo" / f"{ID}.log"


@both_loops
async def test_a_started_replica_reports_its_phases_and_answers(driver: Driver, tmp_path: Path, log_file: Path) -> None:
    observer = Observer()
    started = await driver.start(scripted(tmp_path, factor=2), observer, log_file)
    assert not observer.events
    ready = await observer.ready()
    assert ready.platform == "scripted"
    phases = [event.phase for event in observer.events if isinstance(event, PhaseDone)]
    assert phases[0] is Phase.SPAWN
    assert Phase.LOAD in phases
    assert await Caller(started.link).ask(*ROW) == [2.0, 4.0, 6.0, 8.0]
    assert not observer.exits


async def test_a_replica_is_its_own_session_and_child_of_the_platform_and_shows_who_it_is(
    driver: Driver, tmp_path: Path, log_file: Path
) -> None:
    observer = Observer()
    started = await driver.start(scripted(tmp_path), observer, log_file)
    await observer.ready()
    process = Path("/proc", str(started.pid))
    environment = (process / "environ").read_bytes().split(b"\0")
    assert f"SERVE_REPLICA_ID={ID}".encode() in environment
    assert f"SERVE_HOME_ID={tmp_path}".encode() in environment
    assert os.getsid(started.pid) == started.pid
    assert started.pid in children_of_ours()
    assert int((process / "oom_score_adj").read_text()) == 500
    assert len(list((process / "task").iterdir())) == 1


async def test_a_replica_holds_its_log_its_socket_and_nothing_of_the_platforms(
    driver: Driver, tmp_path: Path, log_file: Path
) -> None:
    observer = Observer()
    leaked = os.open("/dev/zero", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        started = await driver.start(scripted(tmp_path), observer, log_file)
        await observer.ready()
    finally:
        os.close(leaked)
    targets = [str(path.readlink()) for path in Path(f"/proc/{started.pid}/fd").iterdir()]
    sockets = [target for target in targets if target.startswith("socket:")]
    assert len(sockets) == 1
    assert sorted(set(targets) - set(sockets)) == sorted(["/dev/null", str(log_file)])


async def test_the_platforms_own_variables_stay_with_the_platform(
    driver: Driver, tmp_path: Path, log_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVE_TOKEN", "secret")
    await driver.close()
    fresh = new_driver("local" if isinstance(driver, LocalDriver) else "exec", tmp_path)
    await fresh.open()
    try:
        started = await fresh.start(scripted(tmp_path), Observer(), log_file)
        assert b"SERVE_TOKEN" not in Path(f"/proc/{started.pid}/environ").read_bytes()
    finally:
        await fresh.close()


@both_loops
async def test_drain_ends_it_with_status_0_and_the_reason_drained(
    driver: Driver, tmp_path: Path, log_file: Path
) -> None:
    observer = Observer()
    await driver.start(scripted(tmp_path), observer, log_file)
    await observer.ready()
    driver.drain(ID)
    exited = await observer.exited()
    assert (exited.reason, exited.exit_code, exited.signal) == (ExitReason.DRAINED, 0, None)
    assert isinstance(observer.events[-1], Drained)


async def test_drain_lets_the_request_inside_finish_though_another_took_over_the_link(
    driver: Driver, tmp_path: Path, log_file: Path
) -> None:
    observer = Observer()
    started = await driver.start(scripted(tmp_path, run_s=0.2), observer, log_file)
    await observer.ready()
    caller = Caller(started.link)
    asking = asyncio.ensure_future(caller.ask(*ROW))
    await asyncio.sleep(0)
    driver.drain(ID)
    assert await asking == [*ROW]
    assert (await observer.exited()).reason is ExitReason.DRAINED
    await caller.lost.wait()


@both_loops
async def test_what_a_replica_answered_before_it_died_is_heard_before_its_end(
    driver: Driver, tmp_path: Path, log_file: Path
) -> None:
    observer = Observer()
    started = await driver.start(scripted(tmp_path), observer, log_file)
    await observer.ready()
    caller = Caller(started.link)
    asking = asyncio.ensure_future(caller.ask(*ROW))
    await asyncio.sleep(0.001)
    time.sleep(0.2)  # the loop is busy while the replica answers and dies
    os.kill(started.pid, signal.SIGKILL)
    time.sleep(0.1)
    exited = await observer.exited()
    assert exited.signal == signal.SIGKILL
    assert caller.is_answered
    assert await asking == [*ROW]


@both_loops
@pytest.mark.parametrize("reason", [ExitReason.STOPPED, ExitReason.EXECUTION_TIMEOUT, ExitReason.START_TIMEOUT])
async def test_kill_ends_it_at_once_with_the_reason_given(
    driver: Driver, tmp_path: Path, log_file: Path, reason: ExitReason
) -> None:
    observer = Observer()
    await driver.start(scripted(tmp_path, load_s=600), observer, log_file)
    driver.kill(ID, reason)
    driver.kill(ID, ExitReason.CRASHED)
    exited = await observer.exited()
    assert (exited.reason, exited.exit_code, exited.signal) == (reason, None, signal.SIGKILL)
    driver.kill(ID, ExitReason.CRASHED)
    driver.drain(ID)
    assert len(observer.exits) == 1


async def test_a_replica_that_does_not_heed_drain_can_be_killed(driver: Driver, tmp_path: Path, log_file: Path) -> None:
    observer = Observer()
    started = await driver.start(scripted(tmp_path, on_value={"13": "hang"}), observer, log_file)
    await observer.ready()
    Caller(started.link).send(13, 0, 0, 0)
    driver.drain(ID)
    await asyncio.sleep(0.05)
    assert not observer.exits
    driver.kill(ID, ExitReason.STOPPED)
    assert (await observer.exited()).reason is ExitReason.STOPPED


async def test_a_model_that_cannot_be_loaded_is_a_failed_event_and_then_load_failed(
    driver: Driver, tmp_path: Path, log_file: Path
) -> None:
    observer = Observer()
    error = {"code": "model_invalid", "message": "this is no model: export it again"}
    await driver.start(scripted(tmp_path, load_error=error), observer, log_file)
    exited = await observer.exited()
    failed = observer.events[-1]
    assert isinstance(failed, Failed)
    assert (failed.code, failed.message) == ("model_invalid", "this is no model: export it again")
    assert (exited.reason, exited.message) == (ExitReason.LOAD_FAILED, "this is no model: export it again")


async def test_a_process_that_dies_while_loading_has_crashed_with_its_status(
    driver: Driver, tmp_path: Path, log_file: Path
) -> None:
    observer = Observer()
    await driver.start(scripted(tmp_path, load_exit=9), observer, log_file)
    exited = await observer.exited()
    assert (exited.reason, exited.exit_code, exited.signal) == (ExitReason.CRASHED, 9, None)
    assert "exit status 9" in exited.message


@both_loops
@pytest.mark.parametrize(("action", "number"), [("abort", signal.SIGABRT), ("kill", signal.SIGKILL)])
async def test_a_crash_names_its_signal_and_without_the_kernels_word_is_not_out_of_memory(
    driver: Driver, tmp_path: Path, log_file: Path, action: str, number: signal.Signals
) -> None:
    observer = Observer()
    started = await driver.start(scripted(tmp_path, on_value={"13": action}), observer, log_file)
    await observer.ready()
    caller = Caller(started.link)
    caller.send(13, 0, 0, 0)
    exited = await observer.exited()
    assert (exited.reason, exited.exit_code, exited.signal) == (ExitReason.CRASHED, None, number)
    assert number.name in exited.message
    await caller.lost.wait()


async def test_a_crash_shows_the_last_words_of_its_log(driver: Driver, tmp_path: Path, log_file: Path) -> None:
    observer = Observer()
    log_file.parent.mkdir(parents=True)
    log_file.write_text("an earlier replica's words\n")
    started = await driver.start(scripted(tmp_path, on_value={"13": "abort"}), observer, log_file)
    await observer.ready()
    Caller(started.link).send(13, 0, 0, 0)
    exited = await observer.exited()
    assert "Fatal Python error: Aborted" in exited.message
    assert "earlier" not in exited.message
    assert "Fatal Python error: Aborted" in log_file.read_text()


async def test_log_bytes_that_are_no_text_do_no_harm(driver: Driver, tmp_path: Path, log_file: Path) -> None:
    observer = Observer()
    started = await driver.start(scripted(tmp_path), observer, log_file)
    await observer.ready()
    with log_file.open("ab") as log:
        log.write(bytes(range(256)) * 40 + b"\nthe end\x1b[2J\n")
    os.kill(started.pid, signal.SIGKILL)
    exited = await observer.exited()
    assert exited.reason is ExitReason.CRASHED
    assert "the end" in exited.message
    assert exited.message.isprintable()


async def test_a_replica_whose_socket_is_closed_exits(driver: Driver, tmp_path: Path, log_file: Path) -> None:
    observer = Observer()
    started = await driver.start(scripted(tmp_path), observer, log_file)
    await observer.ready()
    started.link.close()
    exited = await observer.exited()
    assert (exited.reason, exited.exit_code) == (ExitReason.STOPPED, 0)


async def test_killing_one_replica_leaves_the_others_alone(driver: Driver, tmp_path: Path, log_file: Path) -> None:
    observer, other = Observer(), Observer()
    await driver.start(scripted(tmp_path), observer, log_file)
    second = await driver.start(scripted(tmp_path, "echo-r1-bbbbbbbb"), other, log_file)
    await other.ready()
    driver.kill(ID, ExitReason.STOPPED)
    await observer.exited()
    assert await Caller(second.link).ask(*ROW) == [*ROW]


@pytest.mark.parametrize("turns", [0, 1, 2, 4, 8, 30])
async def test_cancelling_a_start_leaves_no_process(driver: Driver, tmp_path: Path, log_file: Path, turns: int) -> None:
    observer = Observer()
    before = children_of_ours()
    starting = asyncio.ensure_future(driver.start(scripted(tmp_path, load_s=600), observer, log_file))
    for _ in range(turns):
        await asyncio.sleep(0.0002)
    starting.cancel()
    was_started = not isinstance((await asyncio.gather(starting, return_exceptions=True))[0], asyncio.CancelledError)
    if was_started:
        driver.kill(ID, ExitReason.STOPPED)
    async with asyncio.timeout(10):
        while children_of_ours() != before or (was_started and not observer.exits):
            await asyncio.sleep(0.005)
    assert len(observer.exits) == was_started
    assert not observer.events or was_started
    again = Observer()
    await driver.start(scripted(tmp_path), again, log_file)
    await again.ready()


async def test_a_replica_id_is_used_once_at_a_time(driver: Driver, tmp_path: Path, log_file: Path) -> None:
    observer = Observer()
    started = await driver.start(scripted(tmp_path), observer, log_file)
    with pytest.raises(DriverError, match="runs already"):
        await driver.start(scripted(tmp_path), Observer(), log_file)
    await observer.ready()
    assert await Caller(started.link).ask(*ROW) == [*ROW]


async def test_twenty_starts_at_once_all_answer_and_all_leave(driver: Driver, tmp_path: Path) -> None:
    observers = [Observer() for _ in range(20)]
    orders = [scripted(tmp_path, f"echo-r1-{number:08d}", factor=number) for number in range(20)]
    async with asyncio.timeout(50):
        started = await asyncio.gather(
            *(
                driver.start(order, observer, tmp_path / f"{order.replica_id}.log")
                for order, observer in zip(orders, observers, strict=True)
            )
        )
        assert len({replica.pid for replica in started}) == 20
        for number, (observer, replica) in enumerate(zip(observers, started, strict=True)):
            await observer.ready()
            assert await Caller(replica.link).ask(*ROW) == [number * value for value in ROW]
        for order in orders:
            driver.drain(ReplicaId(order.replica_id))
        for observer in observers:
            assert (await observer.exited()).exit_code == 0


@pytest.mark.parametrize("log_file", ["file/replica.log", "/dev/full"])
async def test_a_log_that_cannot_be_written_harms_no_replica(driver: Driver, tmp_path: Path, log_file: str) -> None:
    (tmp_path / "file").write_text("")
    observer = Observer()
    await driver.start(scripted(tmp_path), observer, tmp_path / log_file)
    await observer.ready()
    driver.drain(ID)
    exited = await observer.exited()
    assert (exited.reason, exited.exit_code) == (ExitReason.DRAINED, 0)


async def test_without_descriptors_a_start_fails_cleanly_and_the_next_one_works(
    driver: Driver, tmp_path: Path, log_file: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    order = scripted(tmp_path)
    for spare in range(8):
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + spare, hard))
        try:
            with pytest.raises(DriverError, match="Too many open files"):
                await driver.start(order, Observer(), log_file)
        except pytest.fail.Exception:
            if spare < 3:
                raise
            driver.kill(ID, ExitReason.STOPPED)
            break
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    observer = Observer()
    await driver.start(scripted(tmp_path, "echo-r1-bbbbbbbb"), observer, log_file)
    await observer.ready()


async def test_close_tells_every_observer_and_later_starts_are_refused(
    driver: Driver, tmp_path: Path, log_file: Path
) -> None:
    observers = [Observer(), Observer()]
    for number, observer in enumerate(observers):
        await driver.start(scripted(tmp_path, f"echo-r1-{number:08d}", load_s=600 * number), observer, log_file)
    await driver.close()
    assert [observer.exits[0].reason for observer in observers] == [ExitReason.STOPPED] * 2
    with pytest.raises(DriverError, match="shutting down"):
        await driver.start(scripted(tmp_path), Observer(), log_file)


@pytest.mark.parametrize("kind", ["local", "exec"])
async def test_no_replica_survives_a_platform_that_is_killed(kind: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("platform_process.py")
    platform = subprocess.Popen([sys.executable, str(script), kind, str(tmp_path), "3"], stdout=subprocess.PIPE)
    assert platform.stdout is not None
    pids = [int(pid) for pid in platform.stdout.readline().split()]
    platform.kill()
    platform.wait()
    platform.stdout.close()
    assert len(pids) >= 3
    for pid in pids:
        await wait_dead(pid)
        with contextlib.suppress(ChildProcessError):  # a test before made this process a subreaper: it inherits
            os.waitpid(pid, 0)
