"""Children of the platform: how they end, and that nothing of them is left."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from autoscaler.drivers.processes import ChildProcess, Children, ExitStatus, become_subreaper
from tests.contract.replicas import children_of_ours


def shell(script: str, *, setsid: bool = True) -> int:
    return os.posix_spawn("/bin/sh", ["sh", "-c", script], os.environ, setsid=setsid)


@pytest.fixture(autouse=True)
def orphans_come_to_us() -> None:
    become_subreaper()


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", ExitStatus(0, None)), ("exit 3", ExitStatus(3, None)), ("kill -11 $$", ExitStatus(None, 11))],
)
async def test_the_exit_status_is_exact(script: str, status: ExitStatus) -> None:
    assert await ChildProcess(shell(script)).exited == status


async def test_what_the_kernel_counted_of_a_process_is_known_once_it_is_reaped() -> None:
    script = f"exec {sys.executable} -c 'b = b\"x\" * (40 << 20); [None for _ in range(3_000_000)]'"
    status = await ChildProcess(shell(script)).exited
    assert status == ExitStatus(0, None)
    assert status.cpu_us is not None
    assert status.peak_rss_bytes is not None
    assert 10_000 < status.cpu_us < 60_000_000
    assert 40 << 20 < status.peak_rss_bytes < 1 << 30


async def test_what_a_process_started_in_its_session_ends_with_it_and_is_reaped() -> None:
    before = children_of_ours()
    assert await ChildProcess(shell("sleep 600 & sleep 600 & (sleep 600 & sleep 600) & exit 5")).exited == ExitStatus(
        5, None
    )
    assert children_of_ours() == before


async def test_kill_reaches_the_whole_session() -> None:
    before = children_of_ours()
    process = ChildProcess(shell("sleep 600 & sleep 600; exit 5"))
    process.kill()
    assert await process.exited == ExitStatus(None, signal.SIGKILL)
    assert children_of_ours() == before


async def test_a_process_without_a_session_of_its_own_is_killed_alone() -> None:
    process = ChildProcess(shell("exec sleep 600", setsid=False))
    process.kill()
    assert (await process.exited).signal == signal.SIGKILL


async def test_a_process_that_ended_before_it_was_watched_is_heard_of() -> None:
    pid = shell("exit 4")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222
    process = ChildProcess(pid)
    assert process.is_over
    assert await process.exited == ExitStatus(4, None)
    process.kill()
    assert process.is_over


async def test_closing_kills_and_reaps_every_child() -> None:
    before = children_of_ours()
    children = Children()
    for script in ("sleep 600", "exit 0", "trap '' TERM; sleep 600"):
        children.adopt(shell(script))
    await children.close()
    assert children_of_ours() == before
