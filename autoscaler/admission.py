"""Memory and cores for replicas: who is let in, who waits in line, which idle replica goes."""

from __future__ import annotations

from collections.abc import Iterator

from autoscaler import capacity
from autoscaler.actuator import Actuator
from autoscaler.capacity import Resident, TooLarge, Verdict
from autoscaler.fleet import Fleet
from autoscaler.history import DecisionLog
from autoscaler.replica import Replica, ReplicaState
from autoscaler.surroundings import Surroundings
from serve.core.clock import NS_PER_S
from serve.core.ids import RevisionKey

PATIENCE_NS = 10 * NS_PER_S
"""Who waits for memory so long, and has no replica at all, comes next."""
TURN_NS = 10 * NS_PER_S
"""How long a replica serves, once it is ready, before it has to give way to who is out of patience."""


class Admission:
    """The memory budget of this machine, and its cores. Owned by the loop."""

    def __init__(self, around: Surroundings, actuator: Actuator, decisions: DecisionLog) -> None:
        self.waiting: dict[RevisionKey, int] = {}
        """Revisions that wait for memory, first come first, and since when (monotonic ns)."""
        self.age = 0.0
        """Of the machine's memory as a cache: the value of the last replica evicted."""
        self._pool = around.pool
        self._clock = around.clock
        self._actuator = actuator
        self._decisions = decisions
        self._budget_bytes = around.memory_budget_bytes
        self._cores = around.cores
        self._on_memory_learned = around.on_memory_learned

    def try_for(self, fleet: Fleet) -> Verdict:
        """Say whether memory for one more replica is there now; if not, see to it, or put the fleet in line.

        Who fits is let past those in line, but not past one without any replica whose patience is over: that one comes
        next, and if need be replicas that have had their turn give way to it, though requests keep them busy.
        """
        now_ns = self._clock.monotonic_ns()
        need_bytes, room = fleet.need_bytes, self._actuator.room(self._budget_bytes)
        first = self._out_of_patience(now_ns)
        if first is None or first == fleet.key or need_bytes > self._budget_bytes:
            verdict = capacity.admit(need_bytes, room, self._idle_beside(fleet))
        else:
            verdict = capacity.Wait(f"{first} has waited longer")
        if isinstance(verdict, capacity.Wait) and first == fleet.key:
            turn = capacity.admit(need_bytes, room, [*self._idle_beside(fleet), *self._busy_beside(fleet, now_ns)])
            verdict = turn if isinstance(turn, capacity.Evict) else verdict
        match verdict:
            case capacity.Evict(victims, reason):
                self._line_up(fleet, now_ns)
                self._evict(victims, f"makes place for {fleet.key}: {reason}")
            case capacity.Wait(reason):
                self._line_up(fleet, now_ns)
                self._decisions.add(fleet.key, fleet.live, fleet.live, f"waits for memory: {reason}")
            case capacity.TooLarge(reason):
                self.leave_line(fleet)
                self._decisions.add(fleet.key, fleet.live, fleet.live, reason)
            case capacity.Admitted():
                # Who wants still more lines up anew: its old place would win back what it gives up next.
                self.leave_line(fleet)
        return verdict

    def crowded(self, fleet: Fleet) -> str | None:
        """Return why a further replica of a fleet should wait for cores; None where it need not."""
        if fleet.live < max(1, _promised(fleet)):
            return None  # what runs at all is the scheduler's business, and `min` is a promise
        # Its own count even if they run nothing at this instant: requests wait for them.
        busy_cores = sum(
            other.revision.threads
            for other, replica in self._actuator.replicas.values()
            if other is fleet or replica.ready is None or self._pool.replica_in_flight(replica.id)
        )
        return capacity.crowded(fleet.revision.threads, busy_cores, self._cores)

    def _out_of_patience(self, now_ns: int) -> RevisionKey | None:
        """Return who has waited too long, the first of them; one that has a replica can wait."""
        living = {fleet.key for fleet in self._actuator.fleets() if fleet.live}
        for key, since_ns in self.waiting.items():
            if now_ns - since_ns >= PATIENCE_NS and key not in living:
                return key
        return None

    def _line_up(self, fleet: Fleet, now_ns: int) -> None:
        """Keep its place in line. Who cannot fit whoever else gives way is never out of patience: all would wait."""
        self.waiting.setdefault(fleet.key, now_ns)
        if fleet.need_bytes > self._budget_bytes - self._promised_bytes_beside(fleet):
            self.waiting[fleet.key] = now_ns

    def _promised_bytes_beside(self, wanting: Fleet) -> int:
        """Return what the replicas hold that `min` promises to others: they give way to nobody."""
        promised_bytes = 0
        for fleet in self._actuator.fleets():
            if fleet is not wanting and fleet.removed is None:
                held = sorted(replica.memory_bytes for replica in fleet.replicas.values() if replica.is_live)
                promised_bytes += sum(held[: _promised(fleet)])
        return promised_bytes

    def leave_line(self, fleet: Fleet) -> None:
        self.waiting.pop(fleet.key, None)

    def refusal_of(self, fleet: Fleet) -> str | None:
        """Return why no replica of the fleet can ever run here; None if one can."""
        verdict = capacity.admit(fleet.need_bytes, self._actuator.room(self._budget_bytes), ())
        return verdict.reason if isinstance(verdict, TooLarge) else None

    def ran_out(self, fleet: Fleet, replica: Replica, peak_bytes: int) -> str:
        """A replica died for memory: give the next one half as much again, the whole budget at most. Say so."""
        given_bytes = max(replica.memory_bytes + replica.memory_bytes // 2, peak_bytes)
        fleet.short_bytes = min(self._budget_bytes, max(fleet.short_bytes, given_bytes))
        return (
            f"it was given {capacity.mib(replica.memory_bytes)}, the next one is given {capacity.mib(fleet.need_bytes)}"
            f" of the {capacity.mib(self._budget_bytes)} that all replicas may hold"
        )

    def memory_grew(self, fleet: Fleet) -> None:
        """A revision holds more than was reserved: tell the registry, and make others that are idle pay for it."""
        if self._on_memory_learned is not None:
            self._on_memory_learned(fleet.key, fleet.measured_bytes)
        victims = capacity.reclaim(self._actuator.room(self._budget_bytes), self._idle_beside(fleet))
        self._evict(victims, f"goes because {fleet.key} turned out to need {capacity.mib(fleet.measured_bytes)}")

    def _idle_beside(self, wanting: Fleet) -> Iterator[Resident]:
        """Yield every replica that may be evicted: idle, and not one of those its deployment's `min` promises."""
        now_ns = self._clock.monotonic_ns()
        for fleet in list(self._actuator.fleets()):
            if fleet is wanting or fleet.is_held or fleet.removed is not None:
                continue
            fleet.read(self._pool, now_ns, self.age)  # its value depends on when it was last used
            spare = fleet.live - _promised(fleet)
            for replica in fleet.idle(self._pool)[: max(0, spare)]:
                yield Resident(replica.id, fleet.key, replica.memory_bytes, fleet.value(replica))

    def _busy_beside(self, wanting: Fleet, now_ns: int) -> Iterator[Resident]:
        """Yield every replica that has had its turn and runs requests; what `min` promises stays."""
        for fleet in list(self._actuator.fleets()):
            if fleet is wanting or fleet.is_held or fleet.removed is not None:
                continue
            idle = fleet.idle(self._pool)
            spare = fleet.live - _promised(fleet) - len(idle)
            served = [
                replica
                for replica in fleet.replicas.values()
                if replica.state is ReplicaState.READY
                and replica.stop_reason is None
                and replica not in idle
                and now_ns - replica.ready_ns >= TURN_NS
            ]
            for replica in served[: max(0, spare)]:
                yield Resident(replica.id, fleet.key, replica.memory_bytes, fleet.value(replica))

    def _evict(self, victims: tuple[Resident, ...], why: str) -> None:
        for victim in victims:
            fleet, replica = self._actuator.replicas[victim.id]
            self.age = max(self.age, victim.value)
            before = fleet.live
            self._actuator.retire(replica)
            self._decisions.add(fleet.key, before, fleet.live, f"{replica.id} {why}: {before} → {fleet.live}")


def _promised(fleet: Fleet) -> int:
    """Return how many replicas are kept whatever the demand."""
    return fleet.settings.min if fleet.is_reachable else 0
