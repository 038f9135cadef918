"""The file that a replica logs to, and what is quoted from it when the replica dies."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from autoscaler.drivers.base import DriverError

log = logging.getLogger(__name__)

_READ_BYTES = 32 * 1024
"""A JSON line with a traceback fits in."""
_LINES = 6
_LONGEST_CHARS = 4096
_FATAL = "Fatal Python error"
_OURS = frozenset({"time", "level", "logger", "message"})
_BAD_LEVELS = frozenset({"WARNING", "ERROR", "CRITICAL"})


class ReplicaLog:
    """The file that takes a replica's stdout and stderr; `fd` is ours until `close`."""

    def __init__(self, file: Path) -> None:
        """Open `file` for appending, with its folder; where that cannot be, nowhere: serving matters more than logs.

        Raise DriverError where nothing at all can be opened.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.fd = os.open(file, flags, 0o600)
        except OSError as error:
            log.warning("a log cannot be written: what it should hold is lost", extra={"error": str(error)})
            file = Path(os.devnull)
            try:
                self.fd = os.open(file, flags)
            except OSError as also:
                raise DriverError(f"cannot write the replica's log: {also.strerror}") from also
        self._file = file
        self._start_bytes = os.fstat(self.fd).st_size

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def last_words(self) -> str:
        """Return what this replica complained of last, as one line of printable text; empty where it did not.

        Of JSON lines of `serve.core.logs` the message, and only of the last warning or error. A line of a lower level
        ends what went before: work went on after it. Other lines as they are, the last few; where Python reported a
        fatal signal, the lines from there on: the innermost calls come first in them.
        """
        try:
            with self._file.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                is_cut = file.seek(max(self._start_bytes, size - _READ_BYTES)) > self._start_bytes
                text = file.read(_READ_BYTES).decode(errors="replace")
        except OSError:
            return ""
        lines = text.splitlines()
        if is_cut and len(lines) > 1:
            del lines[0]
        lines = [shown for line in _complaints(lines) if (shown := _printable(line))]
        fatal = [number for number, line in enumerate(lines) if line.startswith(_FATAL)]
        start = fatal[-1] if fatal else max(0, len(lines) - _LINES)
        return " | ".join(lines[start : start + _LINES])[-_LONGEST_CHARS:]


def _complaints(lines: list[str]) -> list[str]:
    """Return what follows the last JSON line of a low level: plain lines, and the last complaint among them."""
    shown: list[str] = []
    complaint_at: int | None = None
    for line in lines:
        entry = _entry(line)
        if entry is not None and entry["level"] not in _BAD_LEVELS:
            shown.clear()
            complaint_at = None
            continue
        if entry is not None:
            if complaint_at is not None:
                del shown[complaint_at]
            complaint_at = len(shown)
        shown.append(line if entry is None else str(entry["message"]))
    return shown


def _entry(line: str) -> dict[str, object] | None:
    """Return a JSON line of `serve.core.logs`, None for any other."""
    if not line.startswith("{"):
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and entry.keys() >= _OURS else None


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() else " " for char in line).strip()
