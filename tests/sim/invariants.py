"""What must hold whenever nothing is left to do at an instant, whatever has happened."""

from __future__ import annotations

from activator.calls import Call
from activator.connection import ReplicaConnection
from activator.gate import Gate
from activator.pick import pick, pick_alone
from serve.core.clock import NS_PER_S
from simulator.callers import SimulatedCall
from simulator.platform import SimulatedPlatform
from tests.sim.truth import late_ns
from tests.sim.violation import Violation

GONE_NS = 2 * NS_PER_S
"""Longest time from a kill until all know of the end."""


class Watch:
    """Looks at one platform. `check` costs a fraction of a millisecond: it is called at every instant."""

    def __init__(self, platform: SimulatedPlatform) -> None:
        self._platform = platform
        self._scaler = platform.autoscaler._scaler
        self._actuator = platform.autoscaler._scaler.actuator
        self._open: list[SimulatedCall] = []
        self._seen = 0
        self._known: set[str] = set()
        self._learned = 0

    def check(self) -> None:
        """Raise Violation."""
        platform = self._platform
        now_ns = platform.clock.monotonic_ns()
        self._open += platform.calls[self._seen :]
        self._seen = len(platform.calls)
        open_calls = self._open = [call for call in self._open if not call.is_done]
        places: list[int] = []
        for gate in platform.router._gates.values():
            self._check_gate(gate, places)
        writer = platform.accounts.writer
        for held in (writer._held, writer._unsynced, writer._syncing):
            places += [id(call) for call, _ in held if not call.is_done and not call.is_probe]
        if len(places) != len(set(places)):
            raise Violation("a call is in two places")
        if set(places) != {id(call) for call in open_calls}:
            raise Violation("a call is nowhere, or was not accepted")
        late_since_ns = now_ns - late_ns(platform)
        for call in open_calls:
            if call.deadline_ns < late_since_ns:
                raise Violation(f"{call.request_id} is overdue")
        self._check_replicas()
        self._check_memory()
        for account in platform.accounts._accounts.values():
            parts = account.meter.parts(now_ns, account.oldest_inside_ns())
            life_us = (account.meter.until_ns(now_ns) - account.life.assigned_mono_ns) // 1000
            if min(parts) < 0 or sum(parts) != life_us:
                raise Violation(f"{account.life.replica}: {parts} of {life_us} µs")

    def _check_gate(self, gate: Gate, places: list[int]) -> None:
        waiting = list(gate._line) if gate._line else []
        here = waiting.copy()
        for replica in gate.connections.values():
            if replica.is_open != (replica in gate._open):
                raise Violation(f"{replica.id} is open and not open")
            if replica.outstanding or replica.in_flight:
                here += self._inside(gate, replica)
        if gate._load.concurrency != len(here):
            raise Violation(f"{gate.key} counts {gate._load.concurrency} of {len(here)} calls")
        if gate.room.held_bytes != sum([len(call.body) for call in here]):
            raise Violation(f"{gate.key} holds bytes of nobody")
        if here:
            places += [id(call) for call in here if not call.is_probe]
        if waiting:
            self._check_line(gate, waiting)

    def _inside(self, gate: Gate, replica: ReplicaConnection) -> list[Call]:
        """Return the calls inside a replica whose callers still wait."""
        calls = list(replica.outstanding.values())
        live = [call for call in calls if not call.is_left]
        if len(live) != replica.in_flight:
            raise Violation(f"{replica.id}: {replica.in_flight} slots are taken by {len(live)}")
        if len(live) > gate.concurrency:
            raise Violation(f"{replica.id} has more inside than concurrency")
        if len(calls) > 1 and any(call.tries for call in calls):
            raise Violation(f"{replica.id}: a second try is not alone")
        return live

    def _check_line(self, gate: Gate, waiting: list[Call]) -> None:
        line = gate._line
        fresh = sum(call.tries == 0 and call.dispatched_ns == 0 for call in waiting)
        if fresh > gate.revision.spec.queue:
            raise Violation(f"{gate.key}: {fresh} wait in a queue of {gate.revision.spec.queue}")
        if gate.is_removed:
            raise Violation(f"{gate.key} is removed, and calls wait")
        if line.fresh and pick(gate._open, gate.concurrency, gate._spared) is not None:
            raise Violation(f"{gate.key}: calls wait beside a free slot")
        if line.suspects and pick_alone(gate._open, others_wait=bool(line.fresh))[0] is not None:
            raise Violation(f"{gate.key}: a second try waits beside a replica of its own")
        # Whoever waits, waits for something that is known to come.
        scaler = self._scaler
        fleet = scaler.fleets.get(gate.key)
        is_hoped = fleet is not None and (
            scaler.is_closing
            or gate.key in scaler.timers._due
            or gate.key in scaler._admission.waiting
            or fleet.starting()
        )
        if not is_hoped:
            raise Violation(f"calls wait for {gate.key}, and nothing is under way")

    def _check_replicas(self) -> None:
        owned = self._actuator.replicas
        begun = self._platform.driver.begun
        for replica_id, running in self._platform.driver.running.items():
            if replica_id not in owned and running in begun:
                raise Violation(f"{replica_id} runs and belongs to nobody")
        with_process = {replica_id for replica_id, (_, replica) in owned.items() if replica.pid is not None}
        if with_process != self._platform.router._replicas.keys():
            raise Violation("activator and autoscaler know other replicas")
        if with_process != self._platform.accounts._accounts.keys():
            raise Violation("the books have other replicas")
        now_ns = self._platform.clock.monotonic_ns()
        for fleet, replica in owned.values():
            most_ns = round(fleet.revision.spec.start_timeout * NS_PER_S) + GONE_NS
            if replica.ready is None and now_ns - replica.ordered_ns > most_ns:
                raise Violation(f"{replica.id} starts for ever")
        for fleet in self._scaler.fleets.values():
            most = fleet.settings.max
            if most is not None and len(fleet.replicas) > most and fleet.live > most:
                raise Violation(f"{fleet.key} has {fleet.live} replicas of {most} at most")

    def _check_memory(self) -> None:
        owned = self._actuator.replicas
        reserved_bytes = sum([replica.memory_bytes for _, replica in owned.values()])
        if reserved_bytes != self._actuator._reserved_bytes:
            raise Violation("reservations are those of other replicas")
        learned = sum([fleet.measured_bytes for fleet in self._scaler.fleets.values()])
        budget_bytes = self._platform.machine.memory_budget_bytes
        if reserved_bytes > budget_bytes and learned == self._learned and owned.keys() - self._known:
            raise Violation(f"{reserved_bytes} bytes were given out of {budget_bytes}")
        self._known, self._learned = set(owned), learned
