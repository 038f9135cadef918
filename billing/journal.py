"""The journal: append-only files of records, the one thing that must be written before an answer's last byte.

`<folder>/<writer>/<seq>.jsonl`, one writer a folder, one record (`billing.records`) a line. Nothing is ever changed
or removed by a writer. What a kill can do is leave the last line incomplete: a torn tail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from billing import records
from serve.core.clock import Clock, boot_id

SEGMENT_BYTES = 64 << 20
_READ_BYTES = 1 << 18
_SEGMENT_DIGITS = 8


class JournalError(Exception):
    """The disk refused records; they stay buffered and the next flush tries again. The sentence names the remedy."""


class Journal:
    """Writes one writer's journal. Owned by one event loop (or thread): calls must not overlap.

    Opening it makes the writer's folder and first record. `sole_writer`: every writer already in `folder` belongs to
    a process that has ended (the lock on the home sees to it), so its open lives are over; said in that record.
    Raises JournalError where the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        writer: str,
        clock: Clock,
        segment_bytes: int = SEGMENT_BYTES,
        *,
        sole_writer: bool = True,
    ) -> None:
        self.origin = records.Origin(writer, boot_id())
        """For the builders in `billing.records`."""
        self._folder = folder / writer
        self._segment_bytes = segment_bytes
        self._lines: list[bytes] = []
        self._unwritten = b""
        self._size_bytes = 0
        self._sequence = 0
        self._descriptor = -1
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            gone = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()) if sole_writer else []
            self._folder.mkdir(mode=0o700)
            self._next_segment()
        except OSError as error:
            raise self._refused(error) from error
        self.append(records.writer(self.origin, gone, mono_ns=clock.monotonic_ns(), wall_ns=clock.wall_ns()))
        self.flush()

    @property
    def pending_bytes(self) -> int:
        """Bytes appended and not yet written: grows while the disk refuses."""
        return len(self._unwritten) + sum(map(len, self._lines))

    def append(self, line: bytes) -> None:
        """Buffer one line made by `billing.records`."""
        self._lines.append(line)

    def flush(self) -> None:
        """Write all that is buffered, with one `write` unless the kernel takes only a part. Raise JournalError."""
        if not self._lines and not self._unwritten:
            return
        try:
            # Only a line's border may end a segment: what a short write began is finished where it began.
            if not self._unwritten and self._size_bytes >= self._segment_bytes:
                self._next_segment()
            self._unwritten += b"".join(self._lines)
            self._lines.clear()
            while self._unwritten:
                written = os.write(self._descriptor, self._unwritten)
                self._size_bytes += written
                self._unwritten = self._unwritten[written:]
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Write what is buffered, sync it to the disk and close. Raise JournalError; the file is closed anyway."""
        if self._descriptor < 0:
            return
        try:
            self.flush()
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._refused(error) from error
        finally:
            os.close(self._descriptor)
            self._descriptor = -1

    def _next_segment(self) -> None:
        sequence = self._sequence + 1
        path = self._folder / f"{sequence:0{_SEGMENT_DIGITS}d}.jsonl"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._sequence, self._size_bytes = descriptor, sequence, 0

    def _refused(self, error: OSError) -> JournalError:
        return JournalError(
            f"the billing journal cannot be written ({error.strerror}): "
            f"free space on the disk of {self._folder}, or make that folder writable"
        )


class Problem(NamedTuple):
    """A whole line that is no record."""

    offset: int
    sentence: str


def segments(folder: Path) -> list[tuple[str, str, Path]]:
    """Return (writer, segment name, path) of every file of a journal, in the order they were written per writer."""
    found = sorted(folder.glob("*/*.jsonl"))
    return [(path.parent.name, path.name, path) for path in found]


def read_segment(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any] | Problem, int]]:
    """Yield (record, offset behind it) from `offset` on; a corrupt line yields a Problem and reading goes on.

    Stops before an incomplete last line: read again from the last offset once more was written.
    """
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        rest = b""
        while chunk := file.read(_READ_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                begin, offset = offset, offset + len(line) + 1
                try:
                    yield records.decode(line), offset
                except records.RecordError as error:
                    yield Problem(begin, str(error)), offset
