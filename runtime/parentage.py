"""What a replica's process owes to the platform's: to die with it, and to be found by it.

System calls that Python has no name for go through ctypes; loading it starts no thread.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import time
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
_libc.prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)


class Orphaned(Exception):
    """The platform is gone: this process has nobody to work for and must exit."""


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent's thread ends. Raise Orphaned if it has ended already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise Orphaned(f"parent is {os.getppid()}, not {parent_pid}")


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


def reset_signals() -> None:
    """Undo what a parent blocked or handles; report fatal signals with a traceback on stderr."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
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
        self._id_start, self._id_bytes = 0, 0
        if at >= 0:
            self._id_start = env_start + at + len(marker) - 1
            self._id_bytes = environment.index(b"\0", at + len(marker)) - at - len(marker)

    def show(self, replica_id: str, title: str) -> None:
        """Let /proc show `title` as command line and `replica_id` as SERVE_REPLICA_ID, where room was kept."""
        _overwrite(self._arg_start, self._arg_end - self._arg_start, title.encode())
        _overwrite(self._id_start, self._id_bytes, replica_id.encode())
        os.environ[REPLICA_ID_VARIABLE] = replica_id


def _overwrite(address: int, size: int, text: bytes) -> None:
    """Write `text` and fill up with NULs; the byte behind `size`, or the last one, is NUL already or stays so."""
    if size:
        ctypes.memmove(address, text[: size - 1].ljust(size, b"\0"), size)


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")
