"""The sweep: replicas that an earlier platform of this home left behind are killed before new ones start.

Replicas die with their platform, so there should be none. What is found escaped: a process that a model's code started
in a session of its own, or one that was between fork and its first system call.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
from pathlib import Path

from autoscaler.drivers.environment import HOME_VARIABLE

log = logging.getLogger(__name__)
_DEATH_S = 2.0
_QUIET_LOOKS = 2
_PAUSE_S = 0.002


def sweep(home: Path, *, keep_children: bool = True) -> list[int]:
    """Kill every process that shows this home's mark, ourselves excepted; return the pids when they are dead.

    `keep_children` spares our own children. Looks again until nothing is found twice: a process that forks or executes
    another program at the moment of the look shows no mark, or not yet. Blocks for as long as that and the ends of
    killed processes take, 2 seconds each at most.
    """
    mark = f"{HOME_VARIABLE}={home}".encode()
    killed: dict[int, int] = {}
    deadline, quiet = time.monotonic() + _DEATH_S, 0
    try:
        while quiet < _QUIET_LOOKS and time.monotonic() < deadline:
            known = len(killed)
            for entry in os.scandir("/proc"):
                if entry.name.isdecimal() and int(entry.name) not in killed:
                    _kill(int(entry.name), mark, keep_children, killed)
            quiet = quiet + 1 if len(killed) == known else 0
            time.sleep(_PAUSE_S)
        _wait_for(killed)
        for pidfd in killed.values():
            with contextlib.suppress(ChildProcessError):  # not ours to reap
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    finally:
        for pidfd in killed.values():
            os.close(pidfd)
    if killed:
        log.warning("killed processes that an earlier platform left behind", extra={"pids": sorted(killed)})
    return sorted(killed)


def _kill(pid: int, mark: bytes, keep_children: bool, killed: dict[int, int]) -> None:
    if not _is_ours(str(pid), mark, keep_children):
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    # Looked at again through a handle that cannot be reused: the pid may have changed hands since.
    if not _is_ours(str(pid), mark, keep_children):
        os.close(pidfd)
        return
    killed[pid] = pidfd
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def _is_ours(pid: str, mark: bytes, keep_children: bool) -> bool:
    if int(pid) == os.getpid():
        return False
    try:
        environment = Path("/proc", pid, "environ").read_bytes()
        if mark not in environment.split(b"\0"):
            return False
        stat = Path("/proc", pid, "stat").read_bytes()
    except OSError:  # gone, or somebody else's
        return False
    parent = int(stat[stat.rindex(b")") + 2 :].split()[1])
    return not (keep_children and parent == os.getpid())


def _wait_for(killed: dict[int, int]) -> None:
    deadline = time.monotonic() + _DEATH_S
    for pidfd in killed.values():
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
