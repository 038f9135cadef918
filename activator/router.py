"""The router: which gate takes a call, and every replica behind the gates.

A `ReplicaPool` towards the autoscaler; towards the doors (REST today) the place where names become gates. It knows no
protocol of callers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from activator import oip
from activator.accounts import Accounts
from activator.calls import AwaitedCall
from activator.connection import ReplicaConnection
from activator.gate import Gate
from activator.pick import choose
from serve.core.clock import NS_PER_S, Clock
from serve.core.errors import Draining, ModelFailed, Publishing, ServeError
from serve.core.events import Drained, Event, Phase, Ready, Stats
from serve.core.frames import Codec
from serve.core.ids import ReplicaId, RequestIds, RevisionKey
from serve.core.link import Link
from serve.core.metrics import Metrics
from serve.core.revision import Revision, Route, State
from serve.core.scaling import Demand, DemandListener, Exited, ReplicaInfo

_NO_DEMAND = Demand(0, 0, 0, 0, 0, 0, 0)


class ProbeResult(NamedTuple):
    """What an inference of the platform's own brought."""

    status: int
    body: bytes
    total_ns: int
    """Submitted to answered, as a caller on this machine would see it without HTTP."""


class Router:
    """Owned by the event loop. `listener` must be set before the first revision.

    `chance` splits calls over revisions by weight; given from outside, a run can be repeated.
    """

    def __init__(
        self,
        ids: RequestIds,
        clock: Clock,
        accounts: Accounts,
        metrics: Metrics,
        chance: random.Random | None = None,
    ) -> None:
        self.routes: dict[str, Route] = {}
        self.is_draining = False
        self.listener: DemandListener
        self.revision_state: Callable[[RevisionKey], State] = lambda _key: State.COLD
        """Asked for the state of a revision; the autoscaler knows."""
        self.expected_start_s: Callable[[RevisionKey], float | None] = lambda _key: None
        """Asked how long a start of a revision takes, None while unknown; the autoscaler knows."""
        self._ids = ids
        self._clock = clock
        self._accounts = accounts
        self._metrics = metrics
        self._chance = chance if chance is not None else random.Random()  # noqa: S311 - a split, no secret
        self._gates: dict[RevisionKey, Gate] = {}
        """By revision. One that is removed stays until its last replica is gone."""
        self._replicas: dict[ReplicaId, tuple[Gate, ReplicaConnection]] = {}
        self._by_url: dict[bytes, tuple[Route, Gate | None]] = {}
        """Routes by the URL that infers; the gate where only one revision takes calls."""

    # What the control plane says ------------------------------------------------------------------------------------

    def add_revision(self, revision: Revision) -> None:
        """Make the revision's gate, or let it take over what publishing learned."""
        gate = self._gates.get(revision.key)
        if gate is None or gate.is_removed:
            self._gates[revision.key] = Gate(
                revision, self._clock, self._accounts, self.listener, lambda key: self.expected_start_s(key)
            )
        else:
            gate.replace(revision)

    def retire_revision(self, key: RevisionKey) -> None:
        """Hold nothing more for a revision: who waits is told so, what is inside a replica may finish."""
        gate = self._gates.get(key)
        if gate is not None:
            gate.remove()

    def remove_revision(self, key: RevisionKey) -> None:
        """Forget a revision: what still waits is told so, what is inside a replica may finish."""
        self.retire_revision(key)
        gate = self._gates.get(key)
        if gate is not None:
            self._forget_if_over(gate)

    def route(self, route: Route) -> None:
        """Send the deployment's calls where `route` says, from now on."""
        self.routes[route.name] = route
        only = self._gates[RevisionKey(route.name, route.weights[0][0])] if len(route.weights) == 1 else None
        self._by_url[oip.infer_url(route.name)] = (route, only)

    def unroute(self, name: str) -> None:
        """The deployment is gone: new calls get 404."""
        self.routes.pop(name, None)
        self._by_url.pop(oip.infer_url(name), None)
        self._metrics.forget(name)

    def queue_status(self, key: RevisionKey) -> tuple[int, int, int]:
        """Return (calls waiting, body bytes held, calls inside replicas) of a revision."""
        gate = self._gates.get(key)
        return (gate.pending, gate.room.held_bytes, gate.in_flight) if gate is not None else (0, 0, 0)

    def in_flight(self) -> int:
        """Return how many calls are waiting or inside, over all deployments."""
        return sum(gate.pending + gate.in_flight for gate in self._gates.values())

    async def probe(self, key: RevisionKey, body: bytes, json_length: int, timeout_s: float = 300.0) -> ProbeResult:
        """Run one inference of the platform's own on exactly this revision: recorded, never charged."""
        gate = self._gates[key]
        now_ns = self._clock.monotonic_ns()
        deadline_ns = now_ns + int(timeout_s * NS_PER_S)
        call = AwaitedCall(self._ids.next(), key, body, Codec.OIP, json_length, now_ns, deadline_ns, deadline_ns)
        call.is_probe = True
        gate.room.take(len(body))
        try:
            gate.submit(call)
        except ServeError:
            gate.room.release(len(body))
            raise
        reply = await call.reply()
        total_ns = self._clock.monotonic_ns() - now_ns
        return ProbeResult(reply.head.status, bytes(reply.body), total_ns)

    def state_of(self, route: Route, revision: Revision | None) -> State:
        """Return what callers are told of a deployment, or of one of its revisions."""
        if route.state in {State.PUBLISHING, State.FAILED} or revision is None:
            return route.state
        return self.revision_state(revision.key)

    def end_drain(self) -> None:
        """The time to drain is over: tell those who still wait for an answer, rather than break their connections."""
        draining = Draining("The platform is shutting down; retry in a moment", retry_after_s=1.0)
        for gate in self._gates.values():
            gate.fail_all(draining)
        self._accounts.writer.refuse_held(draining)

    # What doors ask -------------------------------------------------------------------------------------------------

    def resolve(self, name: str, version: str | None) -> Gate:
        """Return the gate for a call. Raise ServeError: why no call of this deployment, or none at all, is taken."""
        if self.is_draining:
            raise Draining("The platform is shutting down; retry in a moment", retry_after_s=1.0)
        self._accounts.writer.check()
        route = oip.resolve_route(self, name)
        if route.state is State.PUBLISHING:
            raise Publishing(
                f"'{route.name}' is being published and has not answered yet; retry soon", retry_after_s=1.0
            )
        if version is not None:
            return self._gates[oip.resolve_version(route, version).key]
        if not route.weights:
            raise ModelFailed(f"'{route.name}' has no revision whose model is in the store; deploy it again")
        return self._chosen(route)

    def gate_for(self, url: bytes) -> Gate | None:
        """Return what `resolve` would for the deployment whose infer URL this is; None where it would refuse."""
        known = self._by_url.get(url)
        if known is None or self.is_draining or self._accounts.writer.is_blocked:
            return None
        route, only = known
        if only is not None or not route.weights:
            return only
        return self._chosen(route)

    def _chosen(self, route: Route) -> Gate:
        return self._gates[RevisionKey(route.name, choose(route.weights, self._chance))]

    # ReplicaPool ----------------------------------------------------------------------------------------------------

    def demand(self, key: RevisionKey, now_ns: int) -> Demand:
        gate = self._gates.get(key)
        if gate is None:
            return _NO_DEMAND
        self._metrics.pending.labels(key.name).set(gate.pending)
        return gate.demand(now_ns)

    def replica_assigned(self, info: ReplicaInfo) -> None:
        gate = self._gates[info.key]
        replica = ReplicaConnection(info, gate, self)
        self._replicas[info.id] = (gate, replica)
        gate.connections[info.id] = replica
        self._accounts.assigned(
            info,
            gate.revision.spec.labels,
            replica.oldest_inside_ns,
            is_memory_known=gate.revision.memory_bytes > 0,
        )

    def replica_ready(self, replica_id: ReplicaId, link: Link, ready: Ready, phases: dict[Phase, int]) -> None:
        gate, replica = self._replicas[replica_id]
        replica.link = link
        replica.cold_phases = {phase.value: ns for phase, ns in phases.items()}
        link.receiver = replica
        self._accounts.measured(replica_id, ready.peak_memory_bytes)
        self._accounts.ready(replica_id, ready.at_ns)
        gate.replica_ready(replica)

    def replica_retired(self, replica_id: ReplicaId) -> None:
        gate, replica = self._replicas[replica_id]
        self._accounts.retired(replica_id)
        gate.replica_retired(replica)

    def replica_gone(self, exited: Exited) -> None:
        gate, replica = self._replicas.pop(exited.id)
        inside_since_ns = replica.oldest_inside_ns()
        gate.replica_gone(replica, exited)
        self._accounts.gone(exited, inside_since_ns)
        self._forget_if_over(gate)

    def replica_in_flight(self, replica_id: ReplicaId) -> int:
        return len(self._replicas[replica_id][1].outstanding)

    def fail_pending(self, key: RevisionKey, error: ServeError) -> None:
        gate = self._gates.get(key)
        if gate is not None:
            gate.fail_pending(error)

    def replica_event(self, replica_id: ReplicaId, event: Event) -> None:
        """A replica reported something: it passes through here for the books. An `EventSink`."""
        if isinstance(event, Stats | Drained):
            self._accounts.busy_reported(replica_id, event.at_ns, event.total_busy_ns)
        if isinstance(event, Stats):
            self._accounts.measured(replica_id, event.peak_memory_bytes)
        self.listener.replica_event(replica_id, event)

    def _forget_if_over(self, gate: Gate) -> None:
        if gate.is_removed and not gate.connections and self._gates.get(gate.key) is gate:
            del self._gates[gate.key]
            gate.close()
