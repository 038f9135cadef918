"""The contract of a driver: start a replica, report how it ended, stop it. One suite tests every driver."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serve.core.events import Event, ExitReason, LoadOrder
from serve.core.ids import ReplicaId
from serve.core.link import Link
from serve.core.scaling import Exited


class DriverError(Exception):
    """The replica could not be started at all. The sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class StartedReplica:
    """A live process that has been told what to load. Its events come to the observer."""

    pid: int
    link: Link


class ReplicaObserver(Protocol):
    """Who hears of replicas. Called on the loop, never before `start` returned; must not block or raise."""

    def replica_event(self, replica_id: ReplicaId, event: Event) -> None: ...

    def replica_exited(self, exited: Exited) -> None:
        """Exactly once per replica that `start` returned, after the process was reaped."""


class Driver(Protocol):
    """Starts and stops replicas. Owned by the loop; at most one `open` and one `close`."""

    async def open(self) -> None:
        """Make ready to start replicas; sweep replicas an earlier platform of this home left behind."""

    async def start(self, order: LoadOrder, observer: ReplicaObserver, log_file: Path) -> StartedReplica:
        """Start a replica and send it `order`. Its stdout and stderr append to `log_file`. Raise DriverError.

        Cancelling leaves no process behind.
        """

    def drain(self, replica_id: ReplicaId) -> None:
        """Order it to finish and exit (DRAIN frame)."""

    def kill(self, replica_id: ReplicaId, reason: ExitReason) -> None:
        """Kill its whole session now; `replica_exited` will carry `reason`. Does nothing once it is gone.

        While `start` runs, the replica is killed as soon as it is there.
        """

    async def close(self) -> None:
        """Kill what still runs and end helper processes. Returns when all are reaped."""
