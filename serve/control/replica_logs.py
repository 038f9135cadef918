"""What replicas wrote: `logs/replicas/<deployment>/<replica id>.log`, the last lines and what comes after."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

FOLLOW_INTERVAL_S = 0.5
SCANNED_BYTES = 16 << 20
"""How far back in each file lines are looked for."""
LINE_BYTES = 64 << 10
"""A longer line is cut into several."""


_REVISION = re.compile(r".*-r(\d+)-[a-z2-7]{8}")


def drop_logs(folder: Path, last: int) -> None:
    """Remove the logs of a deleted deployment's revisions, up to number `last`: the name may be in use again.

    Blocks. What cannot be removed stays.
    """
    with contextlib.suppress(OSError):
        for path in folder.glob("*.log"):
            found = _REVISION.fullmatch(path.stem)
            if found and int(found[1]) <= last:
                path.unlink(missing_ok=True)
        folder.rmdir()


class LogReader:
    """Reads the logs of one deployment. Blocks: use it in a thread, one call at a time.

    `request_id`: only lines that name this request. Files are read by `tail` once, and from there on by `more`.
    """

    def __init__(self, folder: Path, request_id: str | None = None) -> None:
        self._folder = folder
        self._wanted = (
            re.compile(rb"(?<![\w-])" + re.escape(request_id.encode()) + rb"(?![\w-])") if request_id else None
        )
        self._offsets: dict[Path, int] = {}

    def tail(self, count: int) -> list[dict[str, Any]]:
        """Return the last `count` lines, those of the replica that wrote last at the end."""
        kept: deque[dict[str, Any]] = deque(maxlen=count)
        for path in self._files():
            kept.extend(self._lines(path, max(0, path.stat().st_size - SCANNED_BYTES), whole_only=False))
        return list(kept)

    def more(self) -> list[dict[str, Any]]:
        """Return the whole lines that were written since."""
        return list(
            itertools.chain.from_iterable(
                self._lines(path, self._offsets.get(path, 0), whole_only=True) for path in self._files()
            )
        )

    def _files(self) -> list[Path]:
        """Return the log files, the one written last at the end. Links are not followed."""
        try:
            found = [path for path in self._folder.iterdir() if path.suffix == ".log" and not path.is_symlink()]
            return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name))
        except FileNotFoundError:
            return []

    def _lines(self, path: Path, offset: int, *, whole_only: bool) -> Iterator[dict[str, Any]]:
        with path.open("rb") as file:
            file.seek(offset)
            while line := file.readline(LINE_BYTES):
                if whole_only and not line.endswith(b"\n") and len(line) < LINE_BYTES:
                    break  # its end is still being written
                offset += len(line)
                if self._wanted is None or self._wanted.search(line):
                    yield _shown(path.stem, line)
        self._offsets[path] = offset


def _shown(replica: str, line: bytes) -> dict[str, Any]:
    """Return `{time?, replica, line}`; the time where the line is JSON that has one."""
    text = line.decode("utf-8", "replace").rstrip("\r\n")
    if text.startswith("{"):
        try:
            time = orjson.loads(text).get("time")
        except ValueError:
            time = None
        if isinstance(time, str):
            return {"time": time, "replica": replica, "line": text}
    return {"replica": replica, "line": text}
