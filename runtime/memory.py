"""What memory this process holds, as the kernel counts it.

Reported is what it alone has written to: its private dirty pages. That is what the machine gets back when it exits, and
it does not depend on how many neighbours share the libraries, or the zygote's pages, with it. The kernel keeps a
high-water mark only of the resident set, which counts shared pages too; the peak is therefore that mark less the part
that is not this process's own now. Reading costs 0.3 ms for a small model and grows with mapped memory: for ready and
idle moments only.
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
    rollup = _fields_kib(_ROLLUP.read_text(), ("Rss", "Private_Dirty"))
    high_water_kib = _fields_kib(_STATUS.read_text(), ("VmHWM",))["VmHWM"]
    own_kib = rollup["Private_Dirty"]
    peak_kib = max(own_kib, high_water_kib - (rollup["Rss"] - own_kib))
    return Memory(own_kib * 1024, peak_kib * 1024)


def _fields_kib(text: str, names: tuple[str, ...]) -> dict[str, int]:
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in names:
            found[name] = int(value.split()[0])
    return found
