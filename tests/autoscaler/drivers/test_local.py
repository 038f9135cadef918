"""What only the local driver has: a zygote that may die, be replaced, or be unfit."""

# Nobody else is on the loop while a test looks into /proc:
# ruff: noqa: ASYNC110, ASYNC240

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from autoscaler.drivers import environment
from autoscaler.drivers.base import DriverError
from autoscaler.drivers.local import LocalDriver
from autoscaler.drivers.oom import OomKills
from serve.core.events import ExitReason
from serve.core.ids import ReplicaId
from tests.contract.replicas import Caller, Observer, children_of_ours, scripted

ROW = (1.0, 2.0, 3.0, 4.0)


def kill_zygote(driver: LocalDriver) -> int:
    pid = driver.zygote_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


async def test_replicas_outlive_a_killed_zygote_and_new_ones_come_from_the_next(
    driver: LocalDriver, tmp_path: Path
) -> None:
    first, second = Observer(), Observer()
    started = await driver.start(scripted(tmp_path, "echo-r1-aaaaaaaa"), first, tmp_path / "a.log")
    await first.ready()
    old = kill_zygote(driver)
    after = await driver.start(scripted(tmp_path, "echo-r1-bbbbbbbb"), second, tmp_path / "b.log")
    await second.ready()
    assert driver.zygote_pid not in {old, None}
    assert await Caller(started.link).ask(*ROW) == [*ROW]
    assert await Caller(after.link).ask(*ROW) == [*ROW]
    driver.drain(ReplicaId("echo-r1-aaaaaaaa"))
    exited = await first.exited()
    assert (exited.reason, exited.exit_code) == (ExitReason.DRAINED, 0)
    assert old not in children_of_ours()


async def test_a_zygote_that_the_kernel_killed_for_memory_is_not_blamed_on_a_replica_killed_later(
    driver: LocalDriver, tmp_path: Path
) -> None:
    counter = tmp_path / "memory.events"
    counter.write_text("oom_kill 0\n")
    driver._replicas.oom_kills = OomKills(counter)
    observer, other = Observer(), Observer()
    started = await driver.start(scripted(tmp_path, "echo-r1-aaaaaaaa"), observer, tmp_path / "a.log")
    await observer.ready()
    counter.write_text("oom_kill 1\n")
    kill_zygote(driver)
    await driver.start(scripted(tmp_path, "echo-r1-bbbbbbbb"), other, tmp_path / "b.log")
    os.kill(started.pid, signal.SIGKILL)
    assert (await observer.exited()).reason is ExitReason.CRASHED


async def test_starts_under_way_when_the_zygote_dies_are_carried_out_once_by_the_next(
    driver: LocalDriver, tmp_path: Path
) -> None:
    observers = [Observer() for _ in range(30)]
    orders = [scripted(tmp_path, f"echo-r1-{number:08d}", factor=number) for number in range(30)]
    starts = [
        asyncio.ensure_future(driver.start(order, observer, tmp_path / f"{order.replica_id}.log"))
        for order, observer in zip(orders, observers, strict=True)
    ]
    await starts[3]
    kill_zygote(driver)
    started = await asyncio.gather(*starts)
    for number, (observer, replica) in enumerate(zip(observers, started, strict=True)):
        await observer.ready()
        assert await Caller(replica.link).ask(*ROW) == [number * value for value in ROW]
    assert children_of_ours() == {driver.zygote_pid, *(replica.pid for replica in started)}


async def test_a_stopped_zygote_holds_up_starts_but_cancelled_ones_leave_nothing(
    driver: LocalDriver, tmp_path: Path
) -> None:
    pid = driver.zygote_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    observer = Observer()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(driver.start(scripted(tmp_path), observer, tmp_path / "a.log"), 0.1)
    os.kill(pid, signal.SIGCONT)
    again = Observer()
    await driver.start(scripted(tmp_path), again, tmp_path / "a.log")
    await again.ready()
    assert not observer.events
    assert not observer.exits


async def test_closing_while_starts_are_under_way_refuses_them_and_leaves_nothing(tmp_path: Path) -> None:
    driver = LocalDriver(tmp_path, flavour="bare")
    await driver.open()
    observers = [Observer() for _ in range(20)]
    starts = [
        asyncio.ensure_future(driver.start(scripted(tmp_path, f"e-r1-{n:08d}"), observer, tmp_path / "a.log"))
        for n, observer in enumerate(observers)
    ]
    await starts[2]
    await driver.close()
    results = await asyncio.gather(*starts, return_exceptions=True)
    assert not children_of_ours()
    for result, observer in zip(results, observers, strict=True):
        if isinstance(result, BaseException):
            assert isinstance(result, DriverError)
            assert not observer.exits
        else:
            assert (await observer.exited()).reason is ExitReason.STOPPED


async def test_a_zygote_with_more_than_one_thread_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "QUIET_LIBRARIES", {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"})
    driver = LocalDriver(tmp_path, flavour="onnx")
    with pytest.raises(DriverError, match=r"threads and must have one.*ORT_DISABLE_TELEMETRY=1"):
        await driver.open()
    assert not children_of_ours()


async def test_a_driver_outside_the_main_thread_is_refused(tmp_path: Path) -> None:
    def in_another_thread() -> None:
        asyncio.run(LocalDriver(tmp_path, flavour="bare").open())

    with pytest.raises(DriverError, match="main thread"):
        await asyncio.to_thread(in_another_thread)


async def test_a_replica_shows_its_deployment_where_people_look(driver: LocalDriver, tmp_path: Path) -> None:
    observer = Observer()
    started = await driver.start(scripted(tmp_path, "echo-r1-aaaaaaaa"), observer, tmp_path / "a.log")
    await observer.ready()
    assert Path(f"/proc/{started.pid}/comm").read_text() == "echo-r1\n"
    assert Path(f"/proc/{started.pid}/cmdline").read_bytes().startswith(b"serve replica echo-r1-aaaaaaaa\0")
    zygote = Path(f"/proc/{driver.zygote_pid}")
    async with asyncio.timeout(10):
        # The zygote is itself again when the process between it and the replica has ended.
        while (zygote / "comm").read_text() != "zygote-bare\n":
            await asyncio.sleep(0.002)
    assert b"runtime.zygote" in (zygote / "cmdline").read_bytes()
    assert b"echo-r1-aaaaaaaa" not in (zygote / "environ").read_bytes()


async def test_a_thousand_descriptors_and_a_long_name_do_no_harm(driver: LocalDriver, tmp_path: Path) -> None:
    replica_id = "n" * 63 + "-r1234567-aaaaaaaa"
    observer = Observer()
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1000)]
    try:
        started = await driver.start(scripted(tmp_path, replica_id), observer, tmp_path / "a.log")
    finally:
        for descriptor in held:
            os.close(descriptor)
    await observer.ready()
    assert f"SERVE_REPLICA_ID={replica_id}".encode() in Path(f"/proc/{started.pid}/environ").read_bytes().split(b"\0")
