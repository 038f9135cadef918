"""Child processes: spawn them with exactly the descriptors they need, hear of their end, leave no zombie.

Everything here belongs to the event loop's thread, which is the process's main thread: the kernel tells a child of its
parent's death when the parent *thread* that made it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from autoscaler.drivers.base import DriverError

log = logging.getLogger(__name__)

_PR_SET_CHILD_SUBREAPER = 36
_FIRST_FREE_FD = 16
"""Descriptors to hand over are first copied above the numbers they get in the child, so that none is lost."""
CLOSE_S = 5.0
_RETRY_S = 0.002
_RETRIES = 500
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: by itself (`code`) or by a signal. Both None: somebody else reaped it."""

    code: int | None
    signal: int | None
    cpu_us: int | None = field(default=None, compare=False)
    """What the kernel counted: user and system time of it and of its children that it reaped."""
    peak_rss_bytes: int | None = field(default=None, compare=False)


class Process(Protocol):
    """What a driver needs of a replica's process; `ChildProcess` is the real one."""

    @property
    def exited(self) -> asyncio.Future[ExitStatus]: ...

    @property
    def is_over(self) -> bool: ...

    def kill(self) -> None: ...


def become_subreaper() -> None:
    """Make this process the parent of orphans below it. Raise DriverError outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        raise DriverError("replicas must be started from the main thread: run the platform's event loop there")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise DriverError(f"cannot become a child subreaper ({os.strerror(error)}): Linux 3.4 or later is needed")


def spawn(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], log_fd: int, descriptors: Sequence[int] = ()
) -> int:
    """Run `python -P -m module` in a session of its own and return its pid. Raise OSError.

    It reads nothing on stdin and writes stdout and stderr to `log_fd`; `descriptors` appear as 3, 4, …, and nothing
    else of ours is open in it.
    """
    with contextlib.ExitStack() as copies:
        targets = [(log_fd, 1), (log_fd, 2), *zip(descriptors, range(3, 3 + len(descriptors)), strict=True)]
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        ]
        for source, target in targets:
            copy = fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD)
            copies.callback(os.close, copy)
            actions.append((os.POSIX_SPAWN_DUP2, copy, target))
        return os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", module, *arguments],
            environment,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=_DEFAULT_SIGNALS,
        )


class ChildProcess:
    """One child of this process, ours to reap. `exited` resolves once nothing of it is left in the process table.

    A pid cannot be reused before its parent has reaped it, and nobody but this class reaps: so signals cannot hit a
    stranger.
    """

    def __init__(self, pid: int, *, session_grace_s: float = 0.0) -> None:
        """`session_grace_s`: how long what it leaves behind in its session may outlive it."""
        self.pid = pid
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[ExitStatus] = self._loop.create_future()
        self._session_grace_s = session_grace_s
        self._owns_session = True
        self._grace: asyncio.TimerHandle | None = None
        self._tries = 0
        self._pidfd = os.pidfd_open(pid)
        self._loop.add_reader(self._pidfd, self._ended)

    @property
    def is_over(self) -> bool:
        """It has ended, reaped or not."""
        if self._pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def kill(self) -> None:
        """Kill it and, now or when their grace is over, its whole session. Does nothing once it is gone."""
        if self._pidfd < 0:
            return
        if not self._session_grace_s:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        # It may not have made its session yet, so that the group is not there.
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def release_session(self) -> None:
        """Whoever is in its session still is somebody else's: kill nobody but the process itself."""
        self._owns_session = False
        if self._grace is not None:
            self._grace.cancel()
            self._end_session()

    def reap_session(self) -> None:
        """Reap those of its session, itself excepted, that are our children and have ended."""
        with contextlib.suppress(ChildProcessError):
            while self._pidfd >= 0:
                ended = os.waitid(os.P_PGID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None or ended.si_pid == self.pid:
                    return
                os.waitid(os.P_PID, ended.si_pid, os.WEXITED | os.WNOHANG)

    def _ended(self) -> None:
        """The process is a zombie."""
        if self._pidfd < 0:
            return
        self._loop.remove_reader(self._pidfd)
        if self._session_grace_s and self._owns_session:
            self._grace = self._loop.call_later(self._session_grace_s, self._end_session)
        else:
            self._end_session()

    def _end_session(self) -> None:
        """End what the process left in its session, then reap."""
        self._grace = None
        if self._owns_session:
            # While the zombie stands, its group id is nobody else's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        status = self._reap()
        if status is None:
            self._tries += 1
            self._loop.call_later(_RETRY_S, self._end_session)
            return
        os.close(self._pidfd)
        self._pidfd = -1
        self._tries = 0
        self._reap_group(status)

    def _reap(self) -> ExitStatus | None:
        """Return how it ended; None where it cannot be reaped yet."""
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            # It ended before the process between it and us did: it becomes ours any moment, or it was another's.
            return None if self._tries < _RETRIES else ExitStatus(None, None)
        if result is None:
            return None
        # Only `wait4` tells what it used. While the zombie stands, its pid is nobody else's.
        _, _, used = os.wait4(self.pid, 0)
        cpu_us = round((used.ru_utime + used.ru_stime) * 1_000_000)
        code, number = (result.si_status, None) if result.si_code == os.CLD_EXITED else (None, result.si_status)
        return ExitStatus(code, number, cpu_us, used.ru_maxrss * 1024)

    def _reap_group(self, status: ExitStatus) -> None:
        """Reap what the process left behind: orphans below us are our children, and they were killed."""
        try:
            while os.waitid(os.P_PGID, self.pid, os.WEXITED | os.WNOHANG) is not None:
                pass
        except ChildProcessError:
            pass
        else:
            # The kernel reports the end of one process, not of a group: ask again, for a bounded time.
            self._tries += 1
            if self._tries < _RETRIES:
                self._loop.call_later(_RETRY_S, self._reap_group, status)
                return
        if not self.exited.done():
            self.exited.set_result(status)


class Children:
    """Every child that one driver made and that is not reaped yet, wanted or not. Owned by the loop."""

    def __init__(self) -> None:
        self._alive: set[ChildProcess] = set()

    def adopt(self, pid: int, *, session_grace_s: float = 0.0) -> ChildProcess:
        """Watch a child. Where that is impossible (no descriptor is free) it is killed: raise OSError."""
        try:
            process = ChildProcess(pid, session_grace_s=session_grace_s)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            self._bury(pid, _RETRIES)
            raise
        self._alive.add(process)
        process.exited.add_done_callback(lambda _: self._alive.discard(process))
        return process

    def _bury(self, pid: int, retries: int) -> None:
        """Reap a killed child that could not be watched."""
        with contextlib.suppress(ChildProcessError):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None:
                return
        if retries:
            asyncio.get_running_loop().call_later(_RETRY_S, self._bury, pid, retries - 1)

    async def close(self) -> None:
        """Kill them all; return when they are reaped, or after 5 seconds, with a line in the log."""
        for process in self._alive:
            process.kill()
        if self._alive:
            await asyncio.wait([process.exited for process in self._alive], timeout=CLOSE_S)
        if self._alive:
            log.error("processes do not end", extra={"pids": [process.pid for process in self._alive]})
