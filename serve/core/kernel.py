"""What the kernel counted of a process: the measure that billing is held against. Nothing here is charged.

Reading a process costs about 30 µs: two small files of `/proc`, without a walk through its page tables. Where a process
has a cgroup of its own, that group's counter is finer: it holds what children and ended threads used, too.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

from serve.core.cgroups import CGROUPS, PROC, groups

_US_PER_S = 1_000_000
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class ProcessFigures(NamedTuple):
    """One process, all its threads, since it began."""

    pid: int
    cpu_us: int
    """Processor time, user and system, in steps of a clock tick (10 ms)."""
    anon_bytes: int
    """Anonymous memory it holds now. What a fork shares with its zygote is in it, pages of files are not."""
    peak_rss_bytes: int
    """High-water mark of all it had mapped and present, what it shares with others included."""
    start_ticks: int
    """When it began: tells it from a later process with its pid."""


class OwnMemory(NamedTuple):
    """What one process alone has written to, by its page tables: 0.3 ms and more, so only when somebody asks."""

    held_bytes: int
    peak_bytes: int
    """The high-water mark less the part that is shared now."""


def read_process(pid: int, proc: Path = PROC) -> ProcessFigures | None:
    """Return what the kernel counted of a live process or zombie; None where there is none or it may not be read."""
    try:
        stat = _text(proc / str(pid) / "stat")
        status = _text(proc / str(pid) / "status")
    except OSError:
        return None
    # The name in parentheses may hold anything; the fields behind it begin with the third.
    fields = stat.rpartition(")")[2].split()
    memory = fields_kib(status)
    return ProcessFigures(
        pid=pid,
        cpu_us=(int(fields[11]) + int(fields[12])) * _US_PER_S // _TICKS_PER_S,
        anon_bytes=memory.get("RssAnon", 0) * 1024,
        peak_rss_bytes=memory.get("VmHWM", 0) * 1024,
        start_ticks=int(fields[19]),
    )


def read_self() -> ProcessFigures | None:
    """Return what the kernel counted of this process, its processor time to the microsecond."""
    figures = read_process(os.getpid())
    return None if figures is None else figures._replace(cpu_us=time.process_time_ns() // 1000)


def read_own_memory(pid: int, proc: Path = PROC) -> OwnMemory | None:
    """Return what a live process alone holds; None where that cannot be read."""
    try:
        rollup = fields_kib(_text(proc / str(pid) / "smaps_rollup"))
        peak_kib = fields_kib(_text(proc / str(pid) / "status"))["VmHWM"]
        own_kib = rollup["Private_Dirty"]
        return OwnMemory(own_kib * 1024, max(own_kib, peak_kib - (rollup["Rss"] - own_kib)) * 1024)
    except (OSError, KeyError, ValueError):
        return None


def cgroup_cpu_us(pid: int, proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Return the processor time of the cgroup that `pid` alone lives in (v2 `cpu.stat`, v1 `cpuacct.usage`).

    None where it shares its group with others, or the group cannot be read.
    """
    for root, folder in groups("cpuacct", str(pid), proc, cgroups):
        if folder == root:
            continue
        try:
            if (folder / "cgroup.procs").read_text().split() != [str(pid)]:
                continue
            for name in ("cpu.stat", "cpuacct.usage"):
                if (folder / name).exists():
                    return _cpu_us(name, (folder / name).read_text())
        except (OSError, ValueError):
            continue
    return None


def _cpu_us(name: str, text: str) -> int | None:
    if name == "cpuacct.usage":
        return int(text) // 1000  # nanoseconds
    found = dict(line.split() for line in text.splitlines())
    return int(found["usage_usec"]) if "usage_usec" in found else None


def _text(path: Path) -> str:
    """Return a file of a process: its name is in some, and a process may give itself any bytes for a name."""
    return path.read_bytes().decode(errors="replace")


def fields_kib(text: str) -> dict[str, int]:
    """Return the lines `Name:   123 kB` of a file of `/proc`."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        parts = value.split()
        if len(parts) == 2 and parts[1] == "kB":
            found[name] = int(parts[0])
    return found
