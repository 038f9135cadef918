"""The disk under a journal on paper: it refuses, takes parts, and forgets what was not synced when power is lost."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

from activator.writer import AnswerWriter
from billing.journal import JournalError
from serve.core.clock import Clock


class Killed(SystemExit):
    """The platform's process dies at this very instruction. (asyncio lets nothing else through.)"""


class SimulatedDisk:
    """What journals are written to. It outlives its platforms; one at a time writes.

    The files are real.
    """

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        self.free_bytes: int | None = None
        """Room that is left; None where there is plenty."""
        self.fails_to_sync = False
        self.has_refused = False
        """It was full at a time, or did not sync."""
        self.dies: str | None = None
        """At the next write: `before` it, in the middle (`within`) or right `after` it."""
        self._chance = chance
        self._synced_bytes: dict[str, int] = {}

    def write(self, descriptor: int, data: bytes) -> int:
        """As `os.write`."""
        if self.free_bytes is not None:
            data = data[: self.free_bytes]
            self.free_bytes -= len(data)
            self.has_refused = True
            if not data:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.dies is None:
            return os.write(descriptor, data)
        if self.dies != "before":
            os.write(descriptor, data if self.dies == "after" else data[: self._chance.randrange(len(data))])
        raise Killed

    def sizes(self, writer: str) -> dict[str, int]:
        """Return how long each journal file of `writer` is, by path."""
        with os.scandir(f"{self.folder}/{writer}") as entries:
            return {entry.path: entry.stat().st_size for entry in entries}

    def synced(self, sizes: dict[str, int]) -> None:
        self._synced_bytes |= sizes

    def heal(self) -> None:
        """From now on it takes and syncs everything."""
        self.free_bytes = None
        self.fails_to_sync = False

    def check_sync(self) -> None:
        """Raise OSError where the disk does not sync."""
        if self.fails_to_sync:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def lose_power(self) -> None:
        """Forget what was not synced, of each writer from some byte on: what it wrote later is not there either."""
        for writer in sorted(self.folder.iterdir()):
            is_cut = False
            for path, size in sorted(self.sizes(writer.name).items()):
                synced = min(size, self._synced_bytes.get(path, 0))
                kept = synced if is_cut else self._chance.randint(synced, size)
                is_cut = is_cut or kept < size
                os.truncate(path, kept)


class WatchedSync:
    """A `billing.sync.SyncListener` that tells the disk what is safe, and the writer all it would hear anyway.

    `on_synced(began_ns)`: what was written by then is safe.
    """

    def __init__(
        self, disk: SimulatedDisk, name: str, writer: AnswerWriter, on_synced: Callable[[int], None], clock: Clock
    ) -> None:
        """`name`: of the journal's writer."""
        self._disk = disk
        self._name = name
        self._writer = writer
        self._on_synced = on_synced
        self._clock = clock
        self._began_ns = 0
        self._sizes: dict[str, int] = {}

    def sync_began(self) -> None:
        self._began_ns = self._clock.monotonic_ns()
        self._sizes = self._disk.sizes(self._name)
        self._writer.sync_began()

    def synced(self) -> None:
        self._disk.synced(self._sizes)
        self._on_synced(self._began_ns)
        self._writer.synced()

    def sync_refused(self, error: JournalError) -> None:
        self._disk.has_refused = True
        self._writer.sync_refused(error)
