"""Whether the kernel killed for memory: the cgroup's `oom_kill` counter, and nothing less, is evidence."""

from __future__ import annotations

from pathlib import Path

from serve.core.machine import cgroup_folders


class OomKills:
    """Kills by the kernel in our cgroup that no dead replica has been blamed on yet. Owned by the loop."""

    def __init__(self, counter: Path | None = None) -> None:
        """`counter`: the file that holds an `oom_kill N` line; found from /proc/self/cgroup where not given."""
        self._counter = counter or _find_counter()
        self._explained = self._read()

    def so_far(self) -> int:
        """Return how many kills were counted until now: none of them was of a process that begins after this."""
        return self._read()

    def take(self, before: int = 0) -> bool:
        """Return True if one more process was killed for memory than was asked about; each kill counts once.

        `before`: what `so_far` said when the dead process began. Asked for every process of ours that SIGKILL ended
        and we did not send it to: a kill that nobody took would be blamed on the next one.
        """
        explained = max(self._explained, before)
        if self._read() <= explained:
            return False
        self._explained = explained + 1
        return True

    def _read(self) -> int:
        if self._counter is None:
            return 0
        try:
            lines = self._counter.read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _find_counter() -> Path | None:
    """Return `memory.oom_control` (cgroup v1) or `memory.events` (v2) of our cgroup, or of the nearest above it."""
    for folder in cgroup_folders("memory"):
        for name in ("memory.oom_control", "memory.events"):
            if (folder / name).exists():
                return folder / name
    return None
