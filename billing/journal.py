"""The journal: append-only files of records, the one thing that must be written before an answer's last byte.

`<folder>/<writer>/<seq>.jsonl`, one writer a folder, one record (`billing.records`) a line. No line is ever changed
or removed by a writer. What a kill can do is leave the last line incomplete: a torn tail.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from billing import records
from serve.core.clock import Clock, boot_id

log = logging.getLogger(__name__)

FILE_BYTES = 64 << 20
_READ_BYTES = 1 << 18
_NAME_DIGITS = 8


class JournalError(Exception):
    """The disk refused records; they stay buffered and the next flush tries again. The sentence names the remedy."""


class Unsynced(NamedTuple):
    """What has been written and not yet synced. `sync` may run in any thread, but one at a time."""

    complete: list[int]
    """Descriptors of journal files that were followed by others: closed once they are synced."""
    current: int
    folders: tuple[Path, ...]
    """Folders that got new names."""

    def sync(self) -> None:
        """Bring it to the disk. Raise OSError; nobody knows then what of it is there."""
        while self.complete:
            os.fsync(self.complete[-1])
            os.close(self.complete.pop())
        os.fsync(self.current)
        for folder in self.folders:
            _sync_folder(folder)


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
        file_bytes: int = FILE_BYTES,
        *,
        sole_writer: bool = True,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        """`write`: what takes the bytes; another than the system's is for disks on paper."""
        self.origin = records.Origin(writer, boot_id())
        """For the builders in `billing.records`."""
        self._folder = folder / writer
        self._write = write
        self._file_bytes = file_bytes
        self._next_file_at_bytes = file_bytes
        self._lines: list[bytes] = []
        self._begun = b""
        """What is written of the first of these lines, which must end where it began."""
        self._is_refused = False
        self._size_bytes = 0
        self._sequence = 0
        self._descriptor = -1
        self._complete: list[int] = []
        self._new_names: tuple[Path, ...] = (folder,)
        self._is_synced = True
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            gone = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()) if sole_writer else []
            self._folder.mkdir(mode=0o700)
            self._open_next()
        except OSError as error:
            raise self._error(error) from error
        self.append(records.writer(self.origin, gone, mono_ns=clock.monotonic_ns(), wall_ns=clock.wall_ns()))
        try:
            self.flush()
        except JournalError:
            os.close(self._descriptor)
            raise

    @property
    def pending_bytes(self) -> int:
        """Bytes appended and not yet written: grows while the disk refuses."""
        return sum(map(len, self._lines))

    @property
    def has_complete_files(self) -> bool:
        """Files that were followed by others are still open, to be synced."""
        return bool(self._complete)

    def append(self, line: bytes) -> None:
        """Buffer one line made by `billing.records`."""
        self._lines.append(line)

    def is_buffered(self, request_id: str) -> bool:
        """Return whether the record of a request was appended and is not written, or not whole."""
        name = b'"id":"%b"' % request_id.encode()
        return any(name in line for line in self._lines) or name in b"".join((self._begun, *self._lines[:1]))

    def amend(self, request_id: str, **changes: Any) -> bool:
        """Change the record of a request that is still buffered. False where none is, or a part of it is written."""
        name = b'"id":"%b"' % request_id.encode()
        for index, line in enumerate(self._lines):
            if name in line and not (index == 0 and self._begun):
                self._lines[index] = records.encode(records.decode(line[:-1]) | changes)
                return True
        return False

    def flush(self) -> None:
        """Write all that is buffered, with one `write` unless the kernel takes only a part. Raise JournalError."""
        if self._size_bytes >= self._next_file_at_bytes and not self._begun:
            self._begin_file()
        try:
            while self._lines:
                # A disk that refused is asked with one line: joining all of a long wait each time would cost much.
                count = 1 if self._is_refused else len(self._lines)
                data = self._lines[0] if count == 1 else b"".join(self._lines)
                written = self._write(self._descriptor, data)
                self._is_synced = self._is_refused = False
                self._size_bytes += written
                if written == len(data):
                    del self._lines[:count]
                    self._begun = b""
                else:
                    self._drop(written)
        except OSError as error:
            self._is_refused = True
            self._withdraw()
            raise self._error(error) from error

    def unsynced(self) -> Unsynced | None:
        """Hand over what is written and not synced, for one `sync`; None where there is nothing."""
        if self._is_synced and not self._complete and not self._new_names:
            return None
        handed = Unsynced(self._complete, self._descriptor, self._new_names)
        self._complete, self._new_names, self._is_synced = [], (), True
        return handed

    def sync_failed(self, handed: Unsynced, error: BaseException) -> JournalError:
        """Take back what could not be synced, and go on in another file: this one may have lost records."""
        self._complete += handed.complete
        self._new_names = tuple({*self._new_names, *handed.folders})
        self._is_synced = False
        if handed.current == self._descriptor and self._begun:
            self._next_file_at_bytes = 0  # once the line that was begun is whole
        elif handed.current == self._descriptor:
            self._begin_file()
        return self._error(error)

    def close(self) -> None:
        """Write what is buffered, sync it to the disk and close. Raise JournalError; the file is closed anyway."""
        if self._descriptor < 0:
            return
        try:
            try:
                self.flush()
            finally:
                if (left := self.unsynced()) is not None:
                    left.sync()
        except OSError as error:
            raise self._error(error) from error
        finally:
            os.close(self._descriptor)
            self._descriptor = -1

    def _drop(self, written: int) -> None:
        """Forget the lines that are written; what is left of a line whose beginning is written comes first."""
        whole = 0
        while whole < len(self._lines) and written >= len(self._lines[whole]):
            written -= len(self._lines[whole])
            whole += 1
        if whole:
            self._begun = b""
        del self._lines[:whole]
        if written:
            self._begun += self._lines[0][:written]
            self._lines[0] = self._lines[0][written:]

    def _withdraw(self) -> None:
        """Take the beginning of a line off the file again: nobody reads it before its end, and it can be amended.

        Where that cannot be, the line goes on where it began.
        """
        if not self._begun:
            return
        try:
            os.ftruncate(self._descriptor, self._size_bytes - len(self._begun))
        except OSError:
            return
        self._size_bytes -= len(self._begun)
        self._lines[0] = self._begun + self._lines[0]
        self._begun = b""

    def _begin_file(self) -> None:
        """Go on in a new journal file; where there can be none, in this one, and try again after some records more."""
        try:
            self._open_next()
        except OSError as error:
            self._next_file_at_bytes = self._size_bytes + (self._file_bytes >> 6)
            log.warning("no new journal file: the last one grows on", extra={"error": str(error)})

    def _open_next(self) -> None:
        sequence = self._sequence + 1
        path = self._folder / f"{sequence:0{_NAME_DIGITS}d}.jsonl"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self._descriptor >= 0:
            self._complete.append(self._descriptor)
        self._descriptor, self._sequence, self._size_bytes = descriptor, sequence, 0
        self._next_file_at_bytes = self._file_bytes
        self._new_names = (*self._new_names, self._folder)

    def _error(self, error: BaseException) -> JournalError:
        return JournalError(
            f"the billing journal cannot be written ({getattr(error, 'strerror', None) or error}): "
            f"free space on the disk of {self._folder}, or make that folder writable"
        )


class Problem(NamedTuple):
    """A whole line that is no record."""

    offset: int
    sentence: str


def journal_files(folder: Path) -> list[tuple[str, str, Path]]:
    """Return (writer, file name, path) of every file of a journal, in the order they were written per writer."""
    found = sorted(folder.glob("*/*.jsonl"))
    return [(path.parent.name, path.name, path) for path in found]


def read_journal_file(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any] | Problem, int]]:
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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
