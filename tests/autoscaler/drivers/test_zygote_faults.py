"""The zygote, and the process between it and a replica, at their worst moments: every start ends, once, and soon."""

# Nobody else is on the loop while a test looks into /proc:
# ruff: noqa: ASYNC110

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest

from autoscaler.drivers import zygote
from autoscaler.drivers.base import DriverError, StartedReplica
from autoscaler.drivers.local import LocalDriver
from serve.core.events import ExitReason
from serve.core.ids import ReplicaId
from tests.contract.replicas import Caller, Observer, children_of_ours, scripted

ROW = (1.0, 2.0, 3.0, 4.0)


def parent_of(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat[stat.rindex(")") + 2 :].split()[1])


def in_between(driver: LocalDriver) -> int | None:
    """Return the pid of the process between the zygote and a replica, while there is one."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return next((pid for pid in pids if parent_of(pid) == driver.zygote_pid), None)


def send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def catch_in_between(driver: LocalDriver, folder: Path, number: int) -> tuple[int, asyncio.Task[StartedReplica]]:
    """Order replicas until one is caught while it is forked and unheard of: its process in between is stopped.

    Return it, and the start that waits.
    """
    while True:
        replica_id = f"echo-r1-{number:08d}"
        observer = Observer()
        starting = asyncio.create_task(driver.start(scripted(folder, replica_id), observer, folder / "a.log"))
        await asyncio.sleep(0)  # the command is in the socket
        pid = None
        for _ in range(100):
            pid = in_between(driver)
            if pid is not None:
                send(pid, signal.SIGSTOP)
                break
        await asyncio.sleep(0.02)
        if pid is not None and not starting.done():
            return pid, starting
        if pid is not None:
            send(pid, signal.SIGCONT)
        await starting
        driver.kill(ReplicaId(replica_id), ExitReason.STOPPED)
        await observer.exited()
        number += 1000


async def ask(driver: LocalDriver, folder: Path, replica_id: str) -> None:
    """Start one more replica, have it answer, and let it go."""
    observer = Observer()
    started = await driver.start(scripted(folder, replica_id), observer, folder / "ask.log")
    await observer.ready()
    assert await Caller(started.link).ask(*ROW) == [*ROW]
    driver.drain(ReplicaId(replica_id))
    assert (await observer.exited()).reason is ExitReason.DRAINED


async def test_a_zygote_that_hangs_is_replaced_and_what_waited_is_started_once(
    driver: LocalDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygote, "SILENT_S", 0.3)
    hung = driver.zygote_pid
    assert hung is not None
    os.kill(hung, signal.SIGSTOP)
    observers = [Observer() for _ in range(5)]
    async with asyncio.timeout(20):
        started = await asyncio.gather(
            *(
                driver.start(scripted(tmp_path, f"echo-r1-{number:08d}"), observer, tmp_path / "a.log")
                for number, observer in enumerate(observers)
            )
        )
    for observer, replica in zip(observers, started, strict=True):
        await observer.ready()
        assert await Caller(replica.link).ask(*ROW) == [*ROW]
    assert driver.zygote_pid != hung
    assert children_of_ours() == {driver.zygote_pid, *(replica.pid for replica in started)}


async def test_while_no_zygote_comes_up_a_start_ends_in_time_with_the_reason_and_later_ones_work(
    driver: LocalDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygote, "FORK_S", 1.5)
    monkeypatch.setattr(zygote, "LONGEST_BACKOFF_S", 0.1)
    with monkeypatch.context() as broken:
        broken.setitem(os.environ, "PYTHONHOME", "/nowhere")
        assert driver.zygote_pid is not None
        os.kill(driver.zygote_pid, signal.SIGKILL)
        with pytest.raises(DriverError, match=r"no zygote forked the replica within 2 s.*encodings.*zygote-bare\.log"):
            await driver.start(scripted(tmp_path), Observer(), tmp_path / "a.log")
    await ask(driver, tmp_path, "echo-r1-bbbbbbbb")


async def test_a_zygote_killed_again_and_again_costs_no_start(driver: LocalDriver, tmp_path: Path) -> None:
    seen = set()
    for number in range(5):
        observer = Observer()
        starting = asyncio.create_task(
            driver.start(scripted(tmp_path, f"echo-r1-{number:08d}"), observer, tmp_path / "a.log")
        )
        await asyncio.sleep(0)
        while driver.zygote_pid is None:
            await asyncio.sleep(0.005)
        seen.add(driver.zygote_pid)
        os.kill(driver.zygote_pid, signal.SIGKILL)
        started = await starting
        await observer.ready()
        assert await Caller(started.link).ask(*ROW) == [*ROW]
    assert len(seen) == 5


async def test_a_zygote_that_works_is_replaced_at_once_however_often_it_is_killed(
    driver: LocalDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygote, "LONGEST_BACKOFF_S", 3600.0)
    monkeypatch.setattr(zygote, "FIRST_BACKOFF_S", 0.001)
    async with asyncio.timeout(30):
        for number in range(20):  # doubled so often, the pause would be minutes
            await ask(driver, tmp_path, f"echo-r1-{number:08d}")
            assert driver.zygote_pid is not None
            os.kill(driver.zygote_pid, signal.SIGKILL)


async def test_a_killed_process_in_between_costs_nothing_but_another_try(driver: LocalDriver, tmp_path: Path) -> None:
    pid, starting = await catch_in_between(driver, tmp_path, 1)
    before = driver.zygote_pid
    os.kill(pid, signal.SIGKILL)
    started = await starting
    assert await Caller(started.link).ask(*ROW) == [*ROW]
    assert driver.zygote_pid == before, "the zygote goes on"
    async with asyncio.timeout(5):
        while children_of_ours() - {before} != {started.pid}:  # nothing of the first try is left, not even a zombie
            await asyncio.sleep(0.01)


async def test_a_process_in_between_that_hangs_takes_its_zygote_with_it_and_nothing_else(
    driver: LocalDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zygote, "SILENT_S", 0.3)
    older = await driver.start(scripted(tmp_path, "echo-r1-cccccccc"), observer := Observer(), tmp_path / "a.log")
    await observer.ready()
    pid, starting = await catch_in_between(driver, tmp_path, 2)
    started = await starting
    assert await Caller(started.link).ask(*ROW) == [*ROW]
    assert await Caller(older.link).ask(*ROW) == [*ROW], "replicas that stood are not touched"
    assert parent_of(pid) == 0


async def test_zygote_and_process_in_between_killed_together_leave_one_replica_of_one_order(
    driver: LocalDriver, tmp_path: Path
) -> None:
    pid, starting = await catch_in_between(driver, tmp_path, 3)
    killed = driver.zygote_pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    started = await starting
    assert await Caller(started.link).ask(*ROW) == [*ROW]
    async with asyncio.timeout(5):
        while children_of_ours() != {driver.zygote_pid, started.pid}:
            await asyncio.sleep(0.01)


async def test_a_replica_that_is_killed_while_it_starts_is_killed_as_soon_as_it_is_there(
    driver: LocalDriver, tmp_path: Path
) -> None:
    observer = Observer()
    starting = asyncio.create_task(driver.start(scripted(tmp_path, load_s=600), observer, tmp_path / "a.log"))
    await asyncio.sleep(0)
    driver.kill(ReplicaId("echo-r1-aaaaaaaa"), ExitReason.START_TIMEOUT)
    await starting
    exited = await observer.exited()
    assert (exited.reason, exited.signal) == (ExitReason.START_TIMEOUT, signal.SIGKILL)


async def test_a_replica_that_is_stopped_by_a_signal_can_still_be_killed(driver: LocalDriver, tmp_path: Path) -> None:
    observer = Observer()
    started = await driver.start(scripted(tmp_path), observer, tmp_path / "a.log")
    await observer.ready()
    os.kill(started.pid, signal.SIGSTOP)
    driver.drain(ReplicaId("echo-r1-aaaaaaaa"))
    await asyncio.sleep(0.05)
    assert not observer.exits
    driver.kill(ReplicaId("echo-r1-aaaaaaaa"), ExitReason.STOPPED)
    assert (await observer.exited()).reason is ExitReason.STOPPED
