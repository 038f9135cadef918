"""What must hold whenever nothing is left to do at an instant, whatever has happened."""

from __future__ import annotations

from activator.gate import Gate
from activator.pick import pick, pick_alone
from autoscaler.fleet import Fleet
from simulator.platform import SimulatedPlatform
from tests.sim.truth import late_ns
from tests.sim.violation import must


class Watch:
    """Looks at one platform. `check` costs a fraction of a millisecond: it is called at every instant."""

    def __init__(self, platform: SimulatedPlatform) -> None:
        self._platform = platform
        self._scaler = platform.autoscaler._scaler
        self._actuator = platform.autoscaler._scaler.actuator
        self._known: set[str] = set()
        self._learned = 0

    def check(self) -> None:
        """Raise Violation."""
        platform = self._platform
        now_ns = platform.clock.monotonic_ns()
        open_calls = [call for call in platform.calls if not call.is_done]
        platform.calls = open_calls
        places: list[int] = []
        for gate in platform.router._gates.values():
            self._check_gate(gate, places)
        writer = platform.accounts.writer
        for held in (writer._held, writer._unsynced, writer._syncing):
            places += [id(call) for call, _ in held if not call.is_done and not call.is_probe]
        must(len(places) == len(set(places)), "a call is in two places")
        must(set(places) == {id(call) for call in open_calls}, "a call is nowhere, or was not accepted")
        slack_ns = late_ns(platform)
        for call in open_calls:
            must(now_ns <= call.deadline_ns + slack_ns, f"{call.request_id} is overdue")
        self._check_replicas()
        self._check_memory()
        for account in platform.accounts._accounts.values():
            parts = account.meter.parts(now_ns, account.oldest_inside_ns())
            life_us = (account.meter.until_ns(now_ns) - account.life.assigned_mono_ns) // 1000
            must(min(parts) >= 0 and parts.life_us == life_us, f"{account.life.replica}: {parts} of {life_us} µs")

    def _check_gate(self, gate: Gate, places: list[int]) -> None:
        line = gate._line
        waiting = list(line)
        inside = []
        for replica in gate.connections.values():
            live = [call for call in replica.outstanding.values() if not call.is_left]
            must(len(live) == replica.in_flight, f"{replica.id}: {replica.in_flight} slots are taken by {len(live)}")
            must(replica.in_flight <= gate.concurrency, f"{replica.id} has more inside than concurrency")
            alone = any(call.tries for call in replica.outstanding.values())
            must(not alone or len(replica.outstanding) == 1, f"{replica.id}: a second try is not alone")
            must(replica.is_open == (replica in gate._open), f"{replica.id} is open and not open")
            inside += live
        here = waiting + inside
        places += [id(call) for call in here if not call.is_probe]
        must(gate._load.concurrency == len(here), f"{gate.key} counts {gate._load.concurrency} of {len(here)} calls")
        must(gate.room.held_bytes == sum(len(call.body) for call in here), f"{gate.key} holds bytes of nobody")
        fresh = sum(call.tries == 0 and call.dispatched_ns == 0 for call in waiting)
        must(fresh <= gate.revision.spec.queue, f"{gate.key}: {fresh} wait in a queue of {gate.revision.spec.queue}")
        must(not (waiting and gate.is_removed), f"{gate.key} is removed, and calls wait")
        if line.fresh:
            free = pick(gate._open, gate.concurrency, gate._spared)
            must(free is None, f"{gate.key}: calls wait beside a free slot")
        if line.suspects:
            free, _ = pick_alone(gate._open, others_wait=bool(line.fresh))
            must(free is None, f"{gate.key}: a second try waits beside a replica of its own")
        if waiting:
            self._check_hope(gate)

    def _check_hope(self, gate: Gate) -> None:
        """Whoever waits, waits for something that is known to come."""
        scaler = self._scaler
        fleet = scaler.fleets.get(gate.key)
        must(fleet is not None, f"calls wait for {gate.key}, which nobody scales")
        assert fleet is not None
        must(
            scaler.is_closing
            or fleet.starting()
            or gate.key in scaler.timers._due
            or gate.key in scaler._admission.waiting,
            f"calls wait for {gate.key}, and nothing is under way",
        )

    def _check_replicas(self) -> None:
        owned = self._actuator.replicas
        for replica in self._platform.driver.begun:
            if not replica.is_over:
                must(replica.order.replica_id in owned, f"{replica.order.replica_id} runs and belongs to nobody")
        with_process = {replica_id for replica_id, (_, replica) in owned.items() if replica.pid is not None}
        must(with_process == set(self._platform.router._replicas), "activator and autoscaler know other replicas")
        must(with_process == set(self._platform.accounts._accounts), "the books have other replicas")
        for fleet in self._scaler.fleets.values():
            self._check_size(fleet)

    def _check_size(self, fleet: Fleet) -> None:
        most = fleet.settings.max
        must(most is None or fleet.live <= most, f"{fleet.key} has {fleet.live} replicas of {most} at most")

    def _check_memory(self) -> None:
        owned = self._actuator.replicas
        reserved_bytes = sum(replica.memory_bytes for _, replica in owned.values())
        must(reserved_bytes == self._actuator._reserved_bytes, "reservations are those of other replicas")
        learned = sum(fleet.measured_bytes for fleet in self._scaler.fleets.values())
        is_new = any(replica_id not in self._known for replica_id in owned)
        if is_new and learned == self._learned:
            budget_bytes = self._platform.machine.memory_budget_bytes
            must(reserved_bytes <= budget_bytes, f"{reserved_bytes} bytes were given out of {budget_bytes}")
        self._known, self._learned = set(owned), learned
