"""The replicas of one revision and what is known about starting them."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
from pathlib import Path

from autoscaler import capacity
from autoscaler.backoff import Backoff
from autoscaler.decide import Observed, ScalingState, settings_of
from autoscaler.history import ColdStartHistory
from autoscaler.replica import Replica, ReplicaState, ReplicaStatus
from autoscaler.warm import WarmReport
from serve.core.ids import ReplicaId
from serve.core.revision import Revision, State
from serve.core.scaling import Demand, ReplicaPool

_MIB = 1 << 20
_UNKNOWN_START_S = 1.0
"""What a cold start is taken to last for a model that never started here."""


class Fleet:
    """State of one revision. Owned by the autoscaler, on the loop; nothing here waits or acts."""

    def __init__(self, revision: Revision, *, is_reachable: bool, now_ns: int, chance: random.Random) -> None:
        self.revision = revision
        self.key = revision.key
        self.settings = settings_of(revision)
        self.is_reachable = is_reachable
        self.is_held = False
        """Publishing needs a replica."""
        self.kept_ns = now_ns
        self.replicas: dict[ReplicaId, Replica] = {}
        """All that are not gone, in order of their start."""
        self.state = ScalingState()
        self.decided_ns: int | None = None
        self.backoff = Backoff(chance.random)
        self.failure: str | None = None
        """Why the revision counts as failed; None while it does not."""
        self.cold_starts = ColdStartHistory()
        self.warm_waiters: list[asyncio.Future[WarmReport]] = []
        self.removed: asyncio.Future[None] | None = None
        """Set while the revision is being removed; done when its last replica is gone."""
        self.measured_bytes = 0
        """Highest memory any of its replicas was seen to hold, whole MiB; 0 while unknown."""
        self.short_bytes = 0
        """What a replica is given since one ran out of memory; 0 while none did."""
        self.uses = 0
        """Arrivals since it last had no replica."""
        self.age_at_use = 0.0
        """Age of the machine's memory, as greedy-dual counts it, when a request last arrived."""
        self._arrivals = 0
        self._peak = 0
        self._estimated_bytes: int | None = None

    @property
    def live(self) -> int:
        return sum(replica.is_live for replica in self.replicas.values())

    def replace(self, revision: Revision) -> None:
        """Take over what was learned of the same revision. Replicas that run keep what they were started with."""
        self.revision = revision
        self.settings = settings_of(revision)

    # Demand ----------------------------------------------------------------------------------------------------------

    def read(self, pool: ReplicaPool, now_ns: int, age: float) -> Demand:
        """Return the demand; what its peak latched is kept for the next decision."""
        demand = pool.demand(self.key, now_ns)
        if demand.arrivals > self._arrivals:
            self.uses += demand.arrivals - self._arrivals
            self.age_at_use = age
        self._arrivals = demand.arrivals
        self._peak = max(self._peak, demand.peak)
        return demand

    def observe(self, pool: ReplicaPool, now_ns: int, age: float) -> Observed:
        """Return what the next decision is made of."""
        demand = self.read(pool, now_ns, age)
        demand, self._peak = dataclasses.replace(demand, peak=self._peak), 0
        states = [replica.state for replica in self.replicas.values()]
        ready = states.count(ReplicaState.READY)
        return Observed(
            demand=demand,
            starting=states.count(ReplicaState.ORDERED) + states.count(ReplicaState.STARTING),
            ready=ready,
            busy=ready - len(self.idle(pool)),
            is_reachable=self.is_reachable,
            is_held=self.is_held,
            kept_ns=self.kept_ns,
        )

    def forget_demand(self, demand: Demand) -> None:
        """What came so far was refused: only what comes from now on counts."""
        self.state = ScalingState(turned_away=demand.turned_away)
        self._peak = 0

    # Replicas --------------------------------------------------------------------------------------------------------

    def idle(self, pool: ReplicaPool) -> list[Replica]:
        """Return ready replicas with nothing inside, oldest first."""
        return [
            replica
            for replica in self.replicas.values()
            if replica.state is ReplicaState.READY
            and replica.stop_reason is None
            and not pool.replica_in_flight(replica.id)
        ]

    def starting(self) -> list[Replica]:
        return [
            replica
            for replica in self.replicas.values()
            if replica.state in {ReplicaState.ORDERED, ReplicaState.STARTING} and replica.stop_reason is None
        ]

    def ready_replica(self) -> Replica | None:
        return next((replica for replica in self.replicas.values() if replica.state is ReplicaState.READY), None)

    def state_for_callers(self) -> State:
        """Return the state that `/ready` and `status` tell. Cold is servable; draining means being removed."""
        states = {replica.state for replica in self.replicas.values()}
        if self.removed is not None:
            return State.DRAINING
        if ReplicaState.READY in states:
            return State.READY
        if self.failure is not None:
            return State.FAILED
        if states & {ReplicaState.ORDERED, ReplicaState.STARTING}:
            return State.STARTING
        return State.COLD

    def describe(self) -> list[ReplicaStatus]:
        return [
            ReplicaStatus(replica.id, replica.pid, replica.state, replica.since_wall_ns, replica.memory_bytes)
            for replica in self.replicas.values()
        ]

    # Memory ----------------------------------------------------------------------------------------------------------

    @property
    def need_bytes(self) -> int:
        """Return what to reserve for one more replica: its measured high-water mark, or an estimate."""
        known_bytes = max(self.revision.memory_bytes, self.measured_bytes)
        if not known_bytes:
            if self._estimated_bytes is None:
                self._estimated_bytes = capacity.estimate_bytes(folder_bytes(Path(self.revision.model_dir)))
            known_bytes = self._estimated_bytes
        return max(known_bytes, self.short_bytes)

    def learn_memory(self, seen_bytes: int) -> bool:
        """Return whether this is more than what was known of the revision. Whole MiB, so that pages are no news."""
        seen_bytes = -(-seen_bytes // _MIB) * _MIB
        if seen_bytes <= max(self.revision.memory_bytes, self.measured_bytes):
            return False
        self.measured_bytes = seen_bytes
        return True

    def value(self, replica: Replica) -> float:
        """Return what keeping one idle replica is worth (greedy-dual)."""
        cold_start_s = self.cold_starts.expected_s() or _UNKNOWN_START_S
        return capacity.value(self.age_at_use, self.uses, cold_start_s, replica.memory_bytes)


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below `folder`; 0 where it does not exist."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            total += Path(parent, name).stat().st_size
    return total
