"""Acts on replicas: starts, retires and kills them, and follows each from the order until nothing of it is left."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from autoscaler.capacity import Room
from autoscaler.claims import credible_bytes
from autoscaler.drivers.base import DriverError, StartedReplica
from autoscaler.fleet import Fleet
from autoscaler.old_logs import OldLogs
from autoscaler.replica import Replica, ReplicaState
from autoscaler.surroundings import Surroundings
from autoscaler.timers import Timers
from serve.core.clock import NS_PER_S
from serve.core.events import Event, ExitReason, Failed, PhaseDone, Ready, Stats
from serve.core.ids import ReplicaId, new_replica_id
from serve.core.scaling import Exited, ReplicaInfo

log = logging.getLogger(__name__)

_LOST_LINK_GRACE_NS = NS_PER_S
"""A process whose socket closed is dying; one that still lives after this is killed."""


@dataclass(frozen=True, slots=True)
class End:
    """How a replica ended."""

    reason: ExitReason
    message: str
    exited: Exited | None
    """None if there never was a process."""


class Follower(Protocol):
    """Who decides what follows. Called on the loop, after the fleet is up to date."""

    def became_ready(self, fleet: Fleet, replica: Replica) -> None: ...

    def ended(self, fleet: Fleet, replica: Replica, end: End) -> None:
        """The replica is gone and its memory is free; the pool has not heard of it yet."""

    def memory_grew(self, fleet: Fleet) -> None:
        """More was seen in use than was known of the revision."""


class Actuator:
    """Every replica that is not gone. Owned by the loop; implements the drivers' ReplicaObserver."""

    def __init__(self, around: Surroundings, timers: Timers, follower: Follower) -> None:
        self.replicas: dict[ReplicaId, tuple[Fleet, Replica]] = {}
        self._pool = around.pool
        self._driver = around.driver
        self._clock = around.clock
        self._metrics = around.metrics
        self._lifecycle = around.lifecycle
        self._timers = timers
        self._follower = follower
        self._logs = around.logs / "replicas"
        self._old_logs = OldLogs(self._logs)
        self._drain_timeout_ns = around.drain_timeout_ns
        self._chance = around.chance
        self._reserved_bytes = 0
        self._counts: Counter[tuple[str, ReplicaState]] = Counter()

    def room(self, budget_bytes: int) -> Room:
        leaving = (replica.memory_bytes for _, replica in self.replicas.values() if not replica.is_live)
        return Room(budget_bytes, self._reserved_bytes, sum(leaving))

    def fleets(self) -> Iterable[Fleet]:
        """Return the fleets that have replicas, each once."""
        return {fleet.key: fleet for fleet, _ in self.replicas.values()}.values()

    # Orders ----------------------------------------------------------------------------------------------------------

    def start(self, fleet: Fleet) -> Replica:
        """Order one more replica. The driver's work begins with the next turn of the loop."""
        now_ns, wall_ns = self._clock.monotonic_ns(), self._clock.wall_ns()
        replica = Replica(new_replica_id(fleet.key, self._chance), fleet.need_bytes, now_ns, wall_ns, wall_ns)
        fleet.replicas[replica.id] = replica
        self.replicas[replica.id] = (fleet, replica)
        self._reserve(replica.memory_bytes)
        self._count(fleet, replica.state, 1)
        deadline_ns = now_ns + round(fleet.revision.spec.start_timeout * NS_PER_S)
        self._timers.set(("start", replica.id), deadline_ns, functools.partial(self._start_overdue, replica))
        replica.order = self._lifecycle.spawn(f"start {replica.id}", self._order(fleet, replica))
        replica.order.add_done_callback(lambda order: self._order_cancelled(replica) if order.cancelled() else None)
        return replica

    def retire(self, replica: Replica) -> None:
        """Send a ready replica nothing more; it exits once it is empty.

        What is inside may take as long as it takes: only `execution_timeout` and the platform's end are a limit.
        """
        fleet, _ = self.replicas[replica.id]
        replica.stop_reason = ExitReason.DRAINED
        self._move(fleet, replica, ReplicaState.RETIRING)
        self._pool.replica_retired(replica.id)

    def empty(self, replica_id: ReplicaId) -> None:
        """A retired replica has nothing inside any more: order it to exit, and kill it if it does not."""
        known = self.replicas.get(replica_id)
        if known is not None and known[1].state is ReplicaState.RETIRING:
            self._move(*known, ReplicaState.DRAINING)
            deadline_ns = self._clock.monotonic_ns() + self._drain_timeout_ns
            kill = functools.partial(self.kill, known[1], ExitReason.STOPPED)
            self._timers.set(("drain", replica_id), deadline_ns, kill)
            self._driver.drain(replica_id)

    def stop(self, replica: Replica) -> None:
        """End a replica that is not ready yet."""
        self.kill(replica, ExitReason.STOPPED)
        if replica.id in self.replicas:
            self._move(self.replicas[replica.id][0], replica, ReplicaState.DRAINING)

    def kill(self, replica: Replica, reason: ExitReason) -> None:
        """End it now, whatever it does. It counts as what it is until it is gone."""
        replica.stop_reason = reason
        if replica.pid is not None:
            self._driver.kill(replica.id, reason)
        elif replica.order is not None:
            replica.order.cancel()

    def overdue(self, replica_id: ReplicaId, sentence: str) -> None:
        """A request inside it took too long."""
        known = self.replicas.get(replica_id)
        if known is not None:
            log.warning("replica is killed", extra={"replica": replica_id, "reason": sentence})
            self.kill(known[1], ExitReason.EXECUTION_TIMEOUT)

    def link_lost(self, replica_id: ReplicaId) -> None:
        """Its exit should follow by itself; see that it does."""
        known = self.replicas.get(replica_id)
        if known is not None:
            kill_ns = self._clock.monotonic_ns() + _LOST_LINK_GRACE_NS
            kill = functools.partial(self._driver.kill, replica_id, ExitReason.CRASHED)
            self._timers.set(("lost", replica_id), kill_ns, kill)

    def forget(self, name: str) -> None:
        """The deployment is gone, and its last replica, too."""
        self._old_logs.forget(name)
        self._metrics.forget(name)

    # What becomes of them --------------------------------------------------------------------------------------------

    def replica_event(self, replica_id: ReplicaId, event: Event) -> None:
        known = self.replicas.get(replica_id)
        if known is None:
            return
        fleet, replica = known
        if isinstance(event, PhaseDone):
            replica.phases_done.append(event)
        elif isinstance(event, Ready):
            self._ready(fleet, replica, event)
        elif isinstance(event, Failed):
            replica.failed = event
        elif isinstance(event, Stats):
            self._learn_memory(fleet, replica, max(event.memory_bytes, event.peak_memory_bytes))

    def replica_exited(self, exited: Exited) -> None:
        known = self.replicas.get(exited.id)
        if known is None:
            log.error("a replica exited that nobody here started", extra={"replica": exited.id})
            return
        self._metrics.replica_exits.labels(exited.reason.value).inc()
        self._gone(*known, End(exited.reason, exited.message, exited))

    async def _order(self, fleet: Fleet, replica: Replica) -> None:
        log_file = self._logs / fleet.key.name / f"{replica.id}.log"
        try:
            started = await self._driver.start(fleet.revision.load_order(replica.id), self, log_file)
        except (DriverError, OSError) as error:
            self._gone(fleet, replica, End(ExitReason.LOAD_FAILED, str(error), None))
            return
        replica.order = None
        self._started(fleet, replica, started)

    def _order_cancelled(self, replica: Replica) -> None:
        """Forget a replica whose start was called off; where all tasks end (no stop reason), nobody cares."""
        known = self.replicas.get(replica.id)
        if known is None or replica.stop_reason is None:
            return
        seconds = f"{known[0].revision.spec.start_timeout:g} s"
        message = {
            ExitReason.START_TIMEOUT: f"no process within start_timeout ({seconds}): raise it, or see `serve logs`",
        }.get(replica.stop_reason, "stopped before it had a process")
        self._gone(*known, End(replica.stop_reason, message, None))

    def _started(self, fleet: Fleet, replica: Replica, started: StartedReplica) -> None:
        replica.pid, replica.link = started.pid, started.link
        replica.started_ns = self._clock.monotonic_ns()
        info = ReplicaInfo(
            id=replica.id,
            key=fleet.key,
            pid=started.pid,
            cores=fleet.revision.threads,
            memory_bytes=replica.memory_bytes,
            assigned_ns=replica.ordered_ns,
            assigned_wall_ns=replica.ordered_wall_ns,
        )
        self._pool.replica_assigned(info)
        self._move(fleet, replica, ReplicaState.STARTING)

    def _ready(self, fleet: Fleet, replica: Replica, ready: Ready) -> None:
        if replica.state is not ReplicaState.STARTING or replica.stop_reason is not None or replica.link is None:
            return
        self._timers.cancel(("start", replica.id))
        peak_bytes = credible_bytes(replica.pid, max(ready.memory_bytes, ready.peak_memory_bytes))
        ready = dataclasses.replace(
            ready, memory_bytes=min(ready.memory_bytes, peak_bytes), peak_memory_bytes=peak_bytes
        )
        replica.ready, replica.ready_ns = ready, self._clock.monotonic_ns()
        self._move(fleet, replica, ReplicaState.READY)
        phases_ns = replica.phases_ns()
        fleet.cold_starts.add(replica.ready_ns - replica.ordered_ns, phases_ns)
        for phase, duration_ns in phases_ns.items():
            self._metrics.phase_seconds.labels(phase.value).observe(duration_ns / NS_PER_S)
        self._pool.replica_ready(replica.id, replica.link, ready, phases_ns)
        self._learn_memory(fleet, replica, peak_bytes)
        self._follower.became_ready(fleet, replica)

    def _start_overdue(self, replica: Replica) -> None:
        self.kill(replica, ExitReason.START_TIMEOUT)

    def _gone(self, fleet: Fleet, replica: Replica, end: End) -> None:
        for token in ("start", "drain", "lost"):
            self._timers.cancel((token, replica.id))
        del self.replicas[replica.id]
        del fleet.replicas[replica.id]
        self._reserve(-replica.memory_bytes)
        self._count(fleet, replica.state, -1)
        self._old_logs.ended(fleet.key.name, self.replicas)
        log.info(
            "replica ended",
            extra={"replica": replica.id, "reason": end.reason.value, "state": replica.state.value, "how": end.message},
        )
        self._follower.ended(fleet, replica, end)

    # Books -----------------------------------------------------------------------------------------------------------

    def _learn_memory(self, fleet: Fleet, replica: Replica, seen_bytes: int) -> None:
        if seen_bytes > max(fleet.revision.memory_bytes, fleet.measured_bytes):
            seen_bytes = credible_bytes(replica.pid, seen_bytes)
        was_estimated = not max(fleet.revision.memory_bytes, fleet.measured_bytes)
        has_grown = fleet.learn_memory(seen_bytes)
        # An estimate gives way to the first measurement, also downwards; a measurement only to a higher one.
        known_bytes = fleet.need_bytes if was_estimated else max(replica.memory_bytes, seen_bytes)
        self._reserve(known_bytes - replica.memory_bytes)
        replica.memory_bytes = known_bytes
        if has_grown:
            self._follower.memory_grew(fleet)

    def _reserve(self, size_bytes: int) -> None:
        self._reserved_bytes += size_bytes
        self._metrics.reserved_memory.set(self._reserved_bytes)

    def _move(self, fleet: Fleet, replica: Replica, state: ReplicaState) -> None:
        self._count(fleet, replica.state, -1)
        replica.state = state
        replica.since_wall_ns = self._clock.wall_ns()
        self._count(fleet, state, 1)

    def _count(self, fleet: Fleet, state: ReplicaState, change: int) -> None:
        counted = (fleet.key.name, state)
        self._counts[counted] += change
        self._metrics.touch(fleet.key.name, self._clock.monotonic_ns())
        self._metrics.replicas.labels(fleet.key.name, state.value).set(self._counts[counted])
        if not self._counts[counted]:
            del self._counts[counted]
