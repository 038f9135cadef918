"""What this machine, or the cgroup this process lives in, has to give: memory and cores."""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path

from serve.core.cgroups import groups


def memory_bytes() -> int:
    """Return the smaller of the machine's memory and the cgroup's limit (v1 or v2)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *_limits("memory", ("memory.max", "memory.limit_in_bytes"))])


def cores() -> int:
    """Return the cores this process may use: affinity, and the cgroup's CPU quota rounded up."""
    usable = len(os.sched_getaffinity(0))
    for folder in cgroup_folders("cpu"):
        quota, period = _cpu_quota(folder)
        if quota > 0 and period > 0:
            usable = min(usable, math.ceil(quota / period))
    return max(1, usable)


def descriptors() -> int:
    """Raise this process's limit of open descriptors as far as is allowed, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 30


def _cpu_quota(folder: Path) -> tuple[int, int]:
    text = _read(folder / "cpu.max").split()
    if len(text) == 2 and text[0].isdigit():
        return int(text[0]), int(text[1])
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return (int(quota), int(period)) if quota.isdigit() and period.isdigit() else (0, 0)


def _limits(controller: str, names: tuple[str, ...]) -> list[int]:
    texts = [_read(folder / name) for folder in cgroup_folders(controller) for name in names]
    return [int(text) for text in texts if text.isdigit() and int(text) > 0]


def cgroup_folders(controller: str) -> list[Path]:
    """Return this process's cgroup folders for `controller`, its own first, then those above it. Every one limits."""
    return [folder for group in groups(controller) for folder in group.upwards()]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
