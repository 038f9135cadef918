"""Nothing is served from damaged bytes: looks at a model's files before each replica, and reads them all now and then.

A look (size, kind, time of modification) costs a cold start some microseconds and finds what was written, cut,
replaced or removed. Bits that rot below the file system show only when all bytes are read: that is done beside the
first replica of each model after the platform's start, and again after one that failed, without delaying anybody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from autoscaler.drivers.base import Driver, DriverError, ReplicaObserver, StartedReplica
from serve.control.ports import Store
from serve.core.errors import IntegrityError, NotFound
from serve.core.events import Event, ExitReason, LoadOrder
from serve.core.ids import ReplicaId
from serve.core.lifecycle import Lifecycle
from serve.core.scaling import Exited

log = logging.getLogger(__name__)

_SUSPECT = frozenset({ExitReason.LOAD_FAILED, ExitReason.CRASHED})


class SoundModels:
    """A driver that starts replicas of sound models only. Owned by the loop.

    `damaged` hears which models the store has put aside.
    """

    def __init__(
        self, driver: Driver, store: Store, lifecycle: Lifecycle, damaged: Callable[[Sequence[str]], None]
    ) -> None:
        self._driver = driver
        self._store = store
        self._lifecycle = lifecycle
        self._damaged = damaged
        self._read: set[str] = set()
        """Models whose bytes were read, or are being read, since the start or the last failure."""
        self._one_at_a_time = asyncio.Semaphore(1)
        self.open = driver.open
        self.drain = driver.drain
        self.kill = driver.kill
        self.close = driver.close

    async def start(self, order: LoadOrder, observer: ReplicaObserver, log_file: Path) -> StartedReplica:
        """Look at the model's files, then start. Raise DriverError."""
        digest = Path(order.model_dir).parent.name
        try:
            await self._store.check(digest)
        except IntegrityError as error:
            self._put_aside(error)
            raise DriverError(str(error)) from error
        except (NotFound, OSError) as error:
            raise DriverError(f"the model's files cannot be read: {error}") from error
        started = await self._driver.start(order, _Listening(observer, self._read, digest), log_file)
        if digest not in self._read:
            self._read.add(digest)
            self._lifecycle.spawn(f"read {digest[:12]}", self._verify(digest))
        return started

    async def _verify(self, digest: str) -> None:
        async with self._one_at_a_time:
            try:
                await self._store.verify(digest)
            except IntegrityError as error:
                self._put_aside(error)
            except (NotFound, OSError) as error:  # deleted meanwhile; or too many open files: the next start tries
                self._read.discard(digest)
                log.info("a model was not read to its end", extra={"digest": digest, "error": str(error)})

    def _put_aside(self, error: IntegrityError) -> None:
        log.error("a stored model is damaged", extra={"error": str(error)} | error.details)
        self._read.difference_update(error.details["models"])
        self._damaged(error.details["models"])


class _Listening:
    """Passes on what an observer hears, and notes failures that damage could explain."""

    def __init__(self, observer: ReplicaObserver, read: set[str], digest: str) -> None:
        self._observer = observer
        self._read = read
        self._digest = digest
        self.replica_event: Callable[[ReplicaId, Event], None] = observer.replica_event

    def replica_exited(self, exited: Exited) -> None:
        if exited.reason in _SUSPECT:
            self._read.discard(self._digest)
        self._observer.replica_exited(exited)
