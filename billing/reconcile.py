"""`serve bill verify --kernel`: what is charged, beside what the kernel counted, replica by replica.

The two are different things. Charged is what was *granted*: cores × the time cold or busy, and memory for the whole
life; others could not have it. The kernel counts what was really *used*. Used is normally less. What cannot be right is
flagged: a process that used more than it was charged for. A flag is a reason to look, not a broken law.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from billing.ledger import reading
from billing.lines import charged_core_us
from billing.lives import LifeState, RecordedLife, read_lives
from billing.prices import US_PER_S
from serve.core.kernel import OwnMemory, cgroup_cpu_us, read_own_memory

_COUNTED = "SELECT replica, max(cpu_us), max(peak_rss_mib), max(anon_mib) FROM main.states GROUP BY replica"
_ZYGOTES = "SELECT writer, max(zygote_mib) FROM main.machine GROUP BY writer"
_MIB = 1 << 20
_TOLERANCE_US = 50_000
"""Clock ticks, and the threads of an engine that come to rest after a run."""
_TOLERANCE_PERCENT = 2
_TOLERANCE_MIB = 1


@dataclass(frozen=True, slots=True)
class Counted:
    """What the kernel counted of one replica; None where nobody looked, or its journal is an older one."""

    cpu_us: int | None
    peak_rss_mib: int | None
    """High-water mark of what was mapped and present: libraries, files and pages of the zygote that it shared, too."""
    own_mib: int | None
    """What it surely held alone, at most. Live: by its page tables. Ended: anonymous memory when it was looked at,
    less all that it can have shared with the zygote."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    replica: str
    state: LifeState
    granted_core_us: int
    charged_mib: int
    counted: Counted
    flags: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        counted = self.counted
        used = counted.cpu_us
        has_both = used is not None and self.granted_core_us > 0
        return {
            "replica": self.replica,
            "state": self.state.value,
            "granted_core_us": self.granted_core_us,
            "kernel_cpu_us": used,
            "ratio": round(used / self.granted_core_us, 4) if has_both and used is not None else None,
            "charged_mib": self.charged_mib,
            "kernel_own_mib": counted.own_mib,
            "kernel_peak_rss_mib": counted.peak_rss_mib,
            "discrepancy_core_us": None if used is None else self.granted_core_us - used,
            "discrepancy_mib": None if counted.own_mib is None else self.charged_mib - counted.own_mib,
            "flags": self.flags,
        }


def reconcile(
    ledger: Path,
    own_memory: Callable[[int], OwnMemory | None] = read_own_memory,
    group_cpu_us: Callable[[int], int | None] = cgroup_cpu_us,
) -> list[Reconciled]:
    """Return every recorded life beside what the kernel counted of its process, in the order of their begin.

    Call after the platform wrote its state: live replicas are then as of now. Live processes are looked at again, for
    what only page tables or a cgroup of its own tell. Raises LedgerError.
    """
    with reading(ledger) as connection:
        recorded = {replica: counts for replica, *counts in connection.execute(_COUNTED)}
        shared_mib = dict(connection.execute(_ZYGOTES).fetchall())
        pids = _live_pids(connection)
        lives = sorted(read_lives(connection), key=lambda life: (life.assigned_wall_ns, life.replica))
    found = []
    for life in lives:
        cpu_us, peak_rss_mib, anon_mib = recorded[life.replica]
        own_mib = None if anon_mib is None else max(0, anon_mib - shared_mib.get(life.writer, 0))
        pid = pids.get(life.replica) if life.state is LifeState.OPEN else None
        if pid is not None:
            memory = own_memory(pid)
            own_mib = own_mib if memory is None else memory.peak_bytes // _MIB
            cpu_us = max(filter(None, (cpu_us, group_cpu_us(pid))), default=cpu_us)
        found.append(judged(life, Counted(cpu_us, peak_rss_mib, own_mib)))
    return found


def judged(life: RecordedLife, counted: Counted) -> Reconciled:
    """Return a life beside what the kernel counted, with a sentence for each figure that cannot be right."""
    granted_us = charged_core_us(life.cores, life.last.parts)
    flags = []
    most_us = granted_us + granted_us * _TOLERANCE_PERCENT // 100 + _TOLERANCE_US
    if counted.cpu_us is not None and counted.cpu_us > most_us:
        flags.append(
            f"it used {_seconds(counted.cpu_us)} core seconds, and was charged {_seconds(granted_us)}: reading "
            "and sending many small requests is not metered, else its threads spin, or it works with none inside"
        )
    if counted.own_mib is not None and counted.own_mib > life.memory_mib + _TOLERANCE_MIB:
        flags.append(f"it held {counted.own_mib} MiB of its own, and is charged for {life.memory_mib} MiB")
    return Reconciled(life.replica, life.state, granted_us, life.memory_mib, counted, flags)


def as_json(found: list[Reconciled]) -> dict[str, Any]:
    """Return the whole comparison; totals are over lives of which the kernel's figure is known."""
    known = [one for one in found if one.counted.cpu_us is not None]
    return {
        "replicas": [one.as_json() for one in found],
        "total": {
            "granted_core_us": sum(one.granted_core_us for one in known),
            "kernel_cpu_us": sum(one.counted.cpu_us or 0 for one in known),
            "unknown": len(found) - len(known),
            "flagged": sum(bool(one.flags) for one in found),
        },
    }


def _live_pids(connection: sqlite3.Connection) -> dict[str, int]:
    rows = connection.execute("SELECT replica, pid FROM main.lives WHERE pid IS NOT NULL")
    return {row["replica"]: row["pid"] for row in rows}


def _seconds(us: int) -> str:
    return f"{us / US_PER_S:.3f}"
