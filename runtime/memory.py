"""What memory this process holds, as the kernel counts it.

Reported is the proportional set size: private pages in full, pages shared with the zygote and with other replicas by
their part. The sum over all processes is what the machine has in use. The kernel keeps a high-water mark only of the
resident set, which counts shared pages in full; the peak is therefore that mark less the part that is shared now.
Reading costs 0.3 ms for a small model and grows with mapped memory: for ready and idle moments only.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_ROLLUP = Path("/proc/self/smaps_rollup")
_STATUS = Path("/proc/self/status")


class Memory(NamedTuple):
    current_bytes: int
    peak_bytes: int


def read_memory() -> Memory:
    """Return what this process holds alone, now and at most."""
    rollup = _fields_kib(_ROLLUP.read_text(), ("Rss", "Pss"))
    high_water_kib = _fields_kib(_STATUS.read_text(), ("VmHWM",))["VmHWM"]
    shared_kib = rollup["Rss"] - rollup["Pss"]
    peak_kib = max(rollup["Pss"], high_water_kib - shared_kib)
    return Memory(rollup["Pss"] * 1024, peak_kib * 1024)


def _fields_kib(text: str, names: tuple[str, ...]) -> dict[str, int]:
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in names:
            found[name] = int(value.split()[0])
    return found
