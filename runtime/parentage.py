"""What a replica's process owes to the platform's: to die with it, and to be found by it.

System calls that Python has no name for go through ctypes; loading it starts no thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

REPLICA_ID_VARIABLE = "SERVE_REPLICA_ID"
PARENT_WAIT_S = 5.0
OOM_SCORE_ADJ = 500
"""When memory runs out, a replica goes before the platform and before most of what else runs here."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_STAT_ARG_START = 47
"""Index of `arg_start` among the fields of /proc/self/stat; `arg_end`, `env_start`, `env_end` follow (proc(5))."""

_libc = ctypes.CDLL(None, use_errno=True)
_python = ctypes.PyDLL(None, use_errno=True)
"""As `_libc`, but keeping Python's global lock: nothing of Python may move during a bare fork."""
_libc.prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)


class Orphaned(Exception):
    """The platform is gone: this process has nobody to work for and must exit."""


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent's thread ends. Raise Orphaned if it has ended already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise Orphaned(f"parent is {os.getppid()}, not {parent_pid}")


def wait_until_reported(pipe: int) -> None:
    """Wait for the byte that says that the driver knows this process; close the pipe. Raise Orphaned if none comes."""
    try:
        if not os.read(pipe, 1):
            raise Orphaned("the process in between died before anybody heard of this one")
    finally:
        os.close(pipe)


def wait_for_parent(parent_pid: int, between_pid: int) -> None:
    """Wait until the process between us and `parent_pid` has ended, so that we are the subreaper's own child.

    Raise Orphaned if someone else inherits us, or nobody does in time.
    """
    deadline = time.monotonic() + PARENT_WAIT_S
    while (parent := os.getppid()) != parent_pid:
        if parent != between_pid or time.monotonic() > deadline:
            raise Orphaned(f"inherited by {parent}, not by {parent_pid}")
        time.sleep(0.00005)


def set_name(name: str) -> None:
    """Name this process for `ps` and `top`; the kernel keeps 15 bytes."""
    buffer = ctypes.create_string_buffer(name.encode())
    _prctl(_PR_SET_NAME, ctypes.addressof(buffer))


def raise_oom_score() -> None:
    Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))


def bare_fork() -> int:
    """Fork without Python's own work in the child, which costs more than the fork: for a child that only forks on.

    Nothing else may happen in that child but `os.fork`, which does the work for the next, system calls and `os._exit`.
    """
    pid: int = _python.fork()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "fork: " + os.strerror(ctypes.get_errno()))
    return pid


def default_signals() -> None:
    """Handle nothing but fatal signals: those put a traceback on stderr. Children inherit it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    faulthandler.enable()


def reseed() -> None:
    """Give random generators a new start. `random` does so itself at fork, numpy's global one does not."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def thread_count() -> int:
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - before every fork: 20 µs, not 60


class ProcessText:
    """The memory that /proc shows as this process's command line and environment, to be rewritten after a fork.

    A forked child shows the strings its ancestor was exec'd with, whatever `os.environ` says later. They are ordinary
    writable memory of the process, so a child may write its own truth there. Nothing grows: what does not fit is cut.
    """

    def __init__(self) -> None:
        stat = Path("/proc/self/stat").read_bytes()
        # The name in parentheses may itself hold spaces and parentheses; fields are counted behind it.
        fields = stat[stat.rindex(b")") + 2 :].split()
        first = _STAT_ARG_START - 2
        self._arg_start, self._arg_end, env_start, env_end = map(int, fields[first : first + 4])
        environment = b"\0" + ctypes.string_at(env_start, env_end - env_start)
        marker = b"\0" + REPLICA_ID_VARIABLE.encode() + b"="
        at = environment.find(marker)
        self._id_start = 0
        self._title = ctypes.string_at(self._arg_start, self._arg_end - self._arg_start)
        self._id = b""
        if at >= 0:
            self._id_start = env_start + at + len(marker) - 1
            self._id = environment[at + len(marker) : environment.index(b"\0", at + len(marker))]

    @contextlib.contextmanager
    def shown(self, replica_id: str, title: str) -> Iterator[None]:
        """Within the block /proc shows `title` and, where room was kept, `replica_id` as SERVE_REPLICA_ID.

        A child forked within it keeps them. Written before the fork, because the pages are the parent's own there.
        """
        _overwrite(self._arg_start, self._title, title.encode())
        _overwrite(self._id_start, self._id, replica_id.encode())
        os.environ[REPLICA_ID_VARIABLE] = replica_id
        try:
            yield
        finally:
            del os.environ[REPLICA_ID_VARIABLE]
            ctypes.memmove(self._arg_start, self._title, len(self._title))
            ctypes.memmove(self._id_start, self._id, len(self._id))


def _overwrite(address: int, original: bytes, text: bytes) -> None:
    """Write `text` in the place of `original`, cut to leave a NUL, filled up with NULs."""
    if original:
        ctypes.memmove(address, text[: len(original) - 1].ljust(len(original), b"\0"), len(original))


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")
