"""The activator: the front door, always in the request path.

An ASGI app for `/v2` towards callers, a `ReplicaPool` towards the autoscaler.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import orjson

from activator import oip
from activator.accounts import Accounts
from activator.calls import Call
from activator.connection import ReplicaConnection
from activator.gate import Gate
from activator.head import Head, answer_headers, error_headers
from activator.hot import HotDoor
from activator.infer import AwaitedCall, ClientLeft, infer
from activator.pick import choose
from activator.server import CYCLE, respond
from serve.core.clock import NS_PER_S, Clock
from serve.core.errors import (
    Draining,
    ExecutionTimeout,
    ModelFailed,
    Publishing,
    ReplicaLost,
    ServeError,
    UploadTimeout,
)
from serve.core.events import Drained, Event, Phase, Ready, Stats
from serve.core.frames import Codec
from serve.core.ids import ReplicaId, RequestId, RequestIds, RevisionKey
from serve.core.link import FrameLink
from serve.core.metrics import Metrics
from serve.core.revision import Revision, Route, State
from serve.core.scaling import Demand, DemandListener, Exited, ReplicaInfo

log = logging.getLogger(__name__)


class ProbeResult(NamedTuple):
    """What an inference of the platform's own brought."""

    status: int
    body: bytes
    infer_ns: int
    """The engine's run."""
    total_ns: int
    """Submitted to answered, as a caller on this machine would see it without HTTP."""
    rows: int


class Activator:
    """Owned by the event loop. `listener` must be set before the first replica or request."""

    def __init__(
        self, ids: RequestIds, clock: Clock, accounts: Accounts, metrics: Metrics, body_limit_bytes: int
    ) -> None:
        self.routes: dict[str, Route] = {}
        self.is_draining = False
        self.listener: DemandListener
        self.revision_state: Callable[[RevisionKey], State] = lambda _key: State.COLD
        """Asked for the state of a revision; the autoscaler knows."""
        self._ids = ids
        self._clock = clock
        self._accounts = accounts
        self._metrics = metrics
        self._body_limit_bytes = body_limit_bytes
        self._gates: dict[RevisionKey, Gate] = {}
        self._connections: dict[ReplicaId, ReplicaConnection] = {}
        self._hot_urls: dict[bytes, tuple[Route, Gate | None]] = {}
        """By exact URL; the gate where only one revision takes calls."""
        self.hot_path = HotDoor(self, ids, clock, body_limit_bytes)

    # What the control plane says ------------------------------------------------------------------------------------

    def add_revision(self, revision: Revision) -> None:
        """Make the revision's gate, or let it take over what publishing learned."""
        gate = self._gates.get(revision.key)
        if gate is None:
            self._gates[revision.key] = Gate(revision, self._clock, self._accounts, self.listener)
        else:
            gate.replace(revision)

    def remove_revision(self, key: RevisionKey) -> None:
        """Forget a revision whose replicas are gone; what still waits is told so."""
        gate = self._gates.pop(key, None)
        if gate is not None:
            gate.remove()

    def route(self, route: Route) -> None:
        """Send the deployment's calls where `route` says, from now on."""
        self.routes[route.name] = route
        only = self._gates[RevisionKey(route.name, route.weights[0][0])] if len(route.weights) == 1 else None
        self._hot_urls[f"/v2/models/{route.name}/infer".encode()] = (route, only)

    def unroute(self, name: str) -> None:
        """The deployment is gone: new calls get 404."""
        self.routes.pop(name, None)
        self._hot_urls.pop(f"/v2/models/{name}/infer".encode(), None)
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
        await gate.reserve(len(body), deadline_ns)
        try:
            gate.submit(call)
        except ServeError:
            gate.room.release(len(body))
            raise
        reply = await call.reply()
        total_ns = self._clock.monotonic_ns() - now_ns
        return ProbeResult(reply.head.status, bytes(reply.body), reply.usage.infer_ns, total_ns, reply.usage.rows)

    def state_of(self, route: Route, revision: Revision | None) -> State:
        """Return what callers are told of a deployment, or of one of its revisions."""
        if route.state in {State.PUBLISHING, State.FAILED} or revision is None:
            return route.state
        return self.revision_state(revision.key)

    def end_drain(self) -> None:
        """The time to drain is over: tell those who still wait for an answer, rather than break their connections."""
        for gate in self._gates.values():
            gate.fail_all(Draining("The platform is shutting down; retry in a moment", retry_after_s=1.0))

    # HTTP -----------------------------------------------------------------------------------------------------------

    async def __call__(
        self, scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], _send: object
    ) -> None:
        received_ns = self._clock.monotonic_ns()
        cycle = scope[CYCLE]
        request_id = self._ids.next()
        gate: Gate | None = None
        try:
            target = oip.parse_path(scope["path"])
            if target is not None and target.operation == "infer" and scope["method"] == "POST":
                head = Head(scope["headers"])
                gate = self._resolve(target)
                call, reply = await infer(scope, receive, gate, head, request_id, received_ns, self._body_limit_bytes)
                await respond(cycle, reply.head.status, answer_headers(head, call, reply), reply.body)
                self.count(gate, call, reply.head.status)
            else:
                status, answer = oip.describe(self, scope["method"], scope["path"])
                await respond(cycle, status, b"content-type: application/json\r\n", orjson.dumps(answer))
        except ServeError as error:
            await self._refuse(cycle, error, request_id, gate)
        except ClientLeft:
            self._metrics.refusals.labels("client_left").inc()
        except Exception:
            log.exception("request failed inside the activator", extra={"request_id": request_id})
            await self._refuse(cycle, ServeError("Internal error: see the platform's log"), request_id, gate)

    def _resolve(self, target: oip.Target) -> Gate:
        if self.is_draining:
            raise Draining("The platform is shutting down; retry in a moment", retry_after_s=1.0)
        self._accounts.writer.check()
        route = oip.resolve_route(self, target.name)
        if route.state is State.PUBLISHING:
            raise Publishing(
                f"'{route.name}' is being published and has not answered yet; retry soon", retry_after_s=1.0
            )
        if target.version is not None:
            key = oip.resolve_version(route, target.version).key
        elif route.weights:
            key = RevisionKey(route.name, choose(route.weights))
        else:
            raise ModelFailed(f"'{route.name}' has no revision whose model is in the store; deploy it again")
        return self._gates[key]

    async def _refuse(self, cycle: Any, error: ServeError, request_id: RequestId, gate: Gate | None) -> None:
        self.count_refusal(error, request_id, gate)
        is_bounded = any(name == b"content-length" for name, _ in cycle.scope["headers"])
        # A body of known length is read and dropped, but not if it has no end, or nobody knows whether it comes.
        if cycle.more_body and (not is_bounded or isinstance(error, UploadTimeout) or cycle.waiting_for_100_continue):
            cycle.keep_alive = False
        await respond(cycle, error.status, error_headers(error, request_id), orjson.dumps(error.body(request_id)))

    # The hot path ---------------------------------------------------------------------------------------------------

    def hot_gate(self, url: bytes) -> Gate | None:
        """Return the gate for the exact URL of a deployment's infer path; None sends the request through ASGI."""
        known = self._hot_urls.get(url)
        if known is None or self.is_draining or self._accounts.writer.is_blocked:
            return None
        route, only = known
        if only is not None or not route.weights:
            return only
        return self._gates[RevisionKey(route.name, choose(route.weights))]

    def count(self, gate: Gate, call: Call, status: int) -> None:
        """Count an answer a replica gave."""
        now_ns = self._clock.monotonic_ns()
        self._metrics.answered(gate.key.name, status, now_ns)
        self._metrics.request_seconds.observe(call.is_cold, (now_ns - call.received_ns) / NS_PER_S)

    def count_refusal(self, error: ServeError, request_id: RequestId, gate: Gate | None) -> None:
        """Count a request that is answered with `error`: as one that reached a replica, or as refused before any."""
        if gate is None or not isinstance(error, ReplicaLost | ExecutionTimeout):
            self._metrics.refusals.labels(error.code).inc()
            return
        self._metrics.answered(gate.key.name, error.status, self._clock.monotonic_ns())
        log.warning("a request failed", extra={"request_id": request_id, "code": error.code, "error": str(error)})

    # ReplicaPool ----------------------------------------------------------------------------------------------------

    def demand(self, key: RevisionKey, now_ns: int) -> Demand:
        gate = self._gates[key]
        self._metrics.pending.labels(key.name).set(gate.pending)
        return gate.demand(now_ns)

    def replica_assigned(self, info: ReplicaInfo) -> None:
        gate = self._gates[info.key]
        replica = ReplicaConnection(info, gate, self)
        self._connections[info.id] = replica
        gate.connections[info.id] = replica
        self._accounts.assigned(
            info,
            gate.revision.spec.labels,
            replica.oldest_inside_ns,
            is_memory_known=gate.revision.memory_bytes > 0,
        )

    def replica_ready(self, replica_id: ReplicaId, link: FrameLink, ready: Ready, phases: dict[Phase, int]) -> None:
        replica = self._connections[replica_id]
        replica.link = link
        replica.cold_phases = {phase.value: ns for phase, ns in phases.items()}
        link.receiver = replica
        self._accounts.measured(replica_id, ready.peak_memory_bytes)
        self._accounts.ready(replica_id, ready.at_ns)
        self._gates[replica.info.key].replica_ready(replica, ready.at_ns - replica.info.assigned_ns)

    def replica_retired(self, replica_id: ReplicaId) -> None:
        replica = self._connections[replica_id]
        self._accounts.retired(replica_id)
        self._gates[replica.info.key].replica_retired(replica)

    def replica_gone(self, exited: Exited) -> None:
        replica = self._connections.pop(exited.id)
        inside_since_ns = replica.oldest_inside_ns()
        self._gates[replica.info.key].replica_gone(replica, exited)
        self._accounts.gone(exited, inside_since_ns)

    def replica_in_flight(self, replica_id: ReplicaId) -> int:
        return len(self._connections[replica_id].outstanding)

    def fail_pending(self, key: RevisionKey, error: ServeError) -> None:
        self._gates[key].fail_pending(error)

    # DemandListener, as the connections see it: events pass through here for the books -----------------------------

    def replica_event(self, replica_id: ReplicaId, event: Event) -> None:
        if isinstance(event, Stats | Drained):
            self._accounts.busy_reported(replica_id, event.at_ns, event.total_busy_ns)
        if isinstance(event, Stats):
            self._accounts.measured(replica_id, event.peak_memory_bytes)
        self.listener.replica_event(replica_id, event)

    def poke(self, key: RevisionKey) -> None:
        self.listener.poke(key)

    def replica_empty(self, replica_id: ReplicaId) -> None:
        self.listener.replica_empty(replica_id)

    def replica_overdue(self, replica_id: ReplicaId, sentence: str) -> None:
        self.listener.replica_overdue(replica_id, sentence)

    def replica_link_lost(self, replica_id: ReplicaId) -> None:
        self.listener.replica_link_lost(replica_id)
