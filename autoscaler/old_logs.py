"""Logs of replicas that ended: the newest stay for people. All of them would be a file for every wake-up, for ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

KEPT = 50
"""Newest logs of a deployment that are kept."""
ENDS_BETWEEN = 20
"""Replicas of a deployment that end between two looks into its folder."""


class OldLogs:
    """The folders of replica logs. Owned by the loop: a look takes about a millisecond."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ended: Counter[str] = Counter()

    def ended(self, name: str, live: Collection[str]) -> None:
        """A replica of this deployment ended: drop its oldest logs now and then, but none of `live` replicas."""
        if self._ended[name] % ENDS_BETWEEN == 0:
            self._drop(self._folder / name, live)
        self._ended[name] += 1

    def forget(self, name: str) -> None:
        """The deployment is gone."""
        self._ended.pop(name, None)

    def _drop(self, folder: Path, live: Collection[str]) -> None:
        try:
            found = [(path.lstat().st_mtime_ns, path) for path in folder.glob("*.log") if path.stem not in live]
            for _, path in sorted(found)[:-KEPT]:
                path.unlink(missing_ok=True)
        except OSError:
            return  # somebody else tidies up, or the disk refuses: next time
