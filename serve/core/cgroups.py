"""Control groups of a process: where its limits and counters lie, in cgroup v1, v2, or both at once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


class Group(NamedTuple):
    """A folder that may be a group's, and the root of the hierarchy it lies in: that one is the whole machine's."""

    root: Path
    folder: Path

    def upwards(self) -> list[Path]:
        """Return the group's folder and those of the groups around it, its own first. Every one of them limits."""
        return [self.folder, *(folder for folder in self.folder.parents if folder.is_relative_to(self.root))]


def groups(controller: str, process: str = "self", proc: Path = PROC, cgroups: Path = CGROUPS) -> list[Group]:
    """Return the places where a process's group for `controller` may lie: not all of them need be there."""
    try:
        lines = (proc / process / "cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[Group] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            roots = [cgroups, cgroups / "unified"]
        elif controller in controllers.split(","):
            roots = [cgroups / controllers, cgroups / controller]
        else:
            continue
        found += [Group(root, root / path.lstrip("/")) for root in dict.fromkeys(roots)]
    return found
