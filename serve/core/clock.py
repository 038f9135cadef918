"""Time: monotonic for durations, wall for records that people read. Both come from one `Clock`."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Protocol

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
NS_PER_US = 1_000


class Clock(Protocol):
    def monotonic_ns(self) -> int: ...

    def wall_ns(self) -> int: ...


class SystemClock:
    """The machine's clocks. Monotonic time is shared by all processes of one boot.

    It stands still while the machine is suspended (CLOCK_MONOTONIC): nobody is charged, and nothing times out, for a
    time in which nothing ran.
    """

    monotonic_ns = staticmethod(time.monotonic_ns)
    wall_ns = staticmethod(time.time_ns)


class VirtualClock:
    """Time that a test or the simulator moves. Monotonic and wall time advance together unless `step_wall` is used."""

    def __init__(self, monotonic_ns: int = 0, wall_ns: int = 1_700_000_000 * NS_PER_S) -> None:
        self._monotonic_ns = monotonic_ns
        self._wall_ns = wall_ns

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def wall_ns(self) -> int:
        return self._wall_ns

    def advance(self, seconds: float) -> None:
        elapsed_ns = round(seconds * NS_PER_S)
        if elapsed_ns < 0:
            raise ValueError("monotonic time does not go back")
        self._monotonic_ns += elapsed_ns
        self._wall_ns += elapsed_ns

    def step_wall(self, seconds: float) -> None:
        """Move only the wall clock, as an operator or NTP does."""
        self._wall_ns += round(seconds * NS_PER_S)


@functools.cache
def boot_id() -> str:
    """Return the kernel's id of this boot: monotonic times of different boots cannot be compared."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
