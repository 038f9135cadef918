"""One replica as the autoscaler sees it, from the order to start until nothing of it is left."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum

from serve.core.events import ExitReason, Failed, Phase, PhaseDone, Ready
from serve.core.ids import ReplicaId
from serve.core.link import Link


class ReplicaState(StrEnum):
    """ordered → starting → ready → retiring → draining → gone; each may go straight to gone."""

    ORDERED = "ordered"
    """The driver was told; there is no process yet."""
    STARTING = "starting"
    """A process exists and loads the model."""
    READY = "ready"
    RETIRING = "retiring"
    """Gets nothing new; requests are still inside."""
    DRAINING = "draining"
    """Told to exit, or killed."""


LIVE_STATES = frozenset({ReplicaState.ORDERED, ReplicaState.STARTING, ReplicaState.READY})


@dataclass(eq=False, slots=True)
class Replica:
    """Mutable; owned by its fleet, on the loop."""

    id: ReplicaId
    memory_bytes: int
    """Reserved for it until it is gone; grows when it is seen to hold more."""
    ordered_ns: int
    ordered_wall_ns: int
    since_wall_ns: int
    """When it came into its present state."""
    state: ReplicaState = ReplicaState.ORDERED
    pid: int | None = None
    link: Link | None = None
    order: asyncio.Task[None] | None = None
    """The driver's start, while it runs."""
    ready: Ready | None = None
    ready_ns: int = 0
    failed: Failed | None = None
    phases_done: list[PhaseDone] = field(default_factory=list)
    stop_reason: ExitReason | None = None
    """Why the platform ends it; None while it does not."""
    started_ns: int = 0
    """Monotonic: the driver came back with a process."""

    @property
    def is_live(self) -> bool:
        return self.state in LIVE_STATES

    def phases_ns(self) -> dict[Phase, int]:
        """Return the duration of each phase of the start so far.

        Phases are as the replica measured them, except SPAWN, which began before there was a replica: from the order
        until SPAWN ended or, where nobody reported it, the first other phase began. Both sides read the monotonic
        clock of one machine. A phase reported twice counts twice.
        """
        durations: dict[Phase, int] = {}
        spawned_ns = self.started_ns
        others = [done for done in self.phases_done if done.phase is not Phase.SPAWN]
        if others:
            spawned_ns = min(done.start_ns for done in others)
        for done in self.phases_done:
            if done.phase is Phase.SPAWN:
                spawned_ns = done.end_ns
        durations[Phase.SPAWN] = max(0, spawned_ns - self.ordered_ns)
        for done in others:
            durations[done.phase] = durations.get(done.phase, 0) + max(0, done.end_ns - done.start_ns)
        return durations


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One line of `serve status`."""

    id: ReplicaId
    pid: int | None
    state: ReplicaState
    since_wall_ns: int
    memory_bytes: int
