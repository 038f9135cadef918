"""What the platform itself takes of the machine: integrals of processor time and memory, in integers. Pure.

A *tenure* is the time in which one platform has the machine: from its first record to its last known instant, in
monotonic time of one boot. Within it, every core·µs and MiB·µs of the machine is on exactly one line of the bill
(`billing.lines`). Deployments' lines come from the lives of their replicas; what the platform and its zygote take is
measured here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from serve.core.clock import NS_PER_US

PLATFORM, ZYGOTE = "platform", "zygote"
_MIB = 1 << 20
_PROCESSES_KNOWN = 64


class MachineState(NamedTuple):
    """A tenure up to one moment. All but cores, memory and the two present amounts are cumulative from its start."""

    started_mono_ns: int
    cores: int
    """That the platform may use, by affinity and quota."""
    memory_mib: int
    """That there are, by the machine or its cgroup's limit."""
    platform_cpu_us: int = 0
    platform_mib_us: int = 0
    platform_mib: int = 0
    """Held now: it counts until the next record."""
    zygote_cpu_us: int = 0
    zygote_mib_us: int = 0
    zygote_mib: int = 0


class Reading(NamedTuple):
    """One process at one moment, as the kernel counts it."""

    process: tuple[int, int]
    """pid and when it began: no two processes of a boot have both."""
    cpu_us: int
    anon_bytes: int


class MachineMeter:
    """Adds up readings of the platform's processes. Owned by the platform's event loop.

    Memory is taken as constant from one reading to the next. What a process used after its last reading is on no line
    of ours: it stays unallocated, as does what other programs of the machine use.
    """

    def __init__(self, now_ns: int, cores: int, memory_mib: int, readings: Mapping[str, Iterable[Reading]]) -> None:
        """Begin at `now_ns`: what the processes in `readings` used before is on no line."""
        self.state = MachineState(now_ns, cores, memory_mib)
        self._elapsed_us = 0
        self._cpu_us: dict[tuple[int, int], int] = {}
        for line in readings.values():
            self._cpu_us |= {reading.process: reading.cpu_us for reading in line}
        self.sample(now_ns, readings)

    def sample(self, now_ns: int, readings: Mapping[str, Iterable[Reading]]) -> MachineState:
        """Take in what the processes of each line (PLATFORM, ZYGOTE) are at now; return the state up to now."""
        elapsed_us = max(self._elapsed_us, (now_ns - self.state.started_mono_ns) // NS_PER_US)
        passed_us, self._elapsed_us = elapsed_us - self._elapsed_us, elapsed_us
        seen: dict[tuple[int, int], int] = {}
        platform_cpu_us, platform_mib = self._take(readings.get(PLATFORM, ()), seen)
        zygote_cpu_us, zygote_mib = self._take(readings.get(ZYGOTE, ()), seen)
        # One that could not be read this time is not new the next time.
        unseen = {process: cpu_us for process, cpu_us in self._cpu_us.items() if process not in seen}
        self._cpu_us = dict(list((unseen | seen).items())[-_PROCESSES_KNOWN:])
        state = self.state
        self.state = state._replace(
            platform_cpu_us=state.platform_cpu_us + platform_cpu_us,
            platform_mib_us=state.platform_mib_us + state.platform_mib * passed_us,
            platform_mib=platform_mib,
            zygote_cpu_us=state.zygote_cpu_us + zygote_cpu_us,
            zygote_mib_us=state.zygote_mib_us + state.zygote_mib * passed_us,
            zygote_mib=zygote_mib,
        )
        return self.state

    def _take(self, readings: Iterable[Reading], seen: dict[tuple[int, int], int]) -> tuple[int, int]:
        """Return the processor time since each process was last seen, and the memory they hold, in MiB rounded up."""
        grown_us, held_bytes = 0, 0
        for reading in readings:
            before_us = self._cpu_us.get(reading.process, 0)
            cpu_us = max(before_us, reading.cpu_us)
            grown_us += cpu_us - before_us
            held_bytes += reading.anon_bytes
            seen[reading.process] = cpu_us
        return grown_us, -(-held_bytes // _MIB)
