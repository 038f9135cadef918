"""The activator: the front door, always in the request path. An ASGI app for `/v2`; its gates are the router's."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from activator import oip
from activator.calls import Call, ClientLeft
from activator.gate import Gate
from activator.head import Head, answer_headers, error_headers
from activator.hot import HotDoor
from activator.infer import infer
from activator.router import Router
from activator.server import CYCLE, respond
from serve.core.clock import NS_PER_S, Clock
from serve.core.errors import ExecutionTimeout, ReplicaLost, ServeError, UploadTimeout
from serve.core.ids import RequestId, RequestIds
from serve.core.metrics import Metrics

log = logging.getLogger(__name__)


class Activator:
    """The Open Inference Protocol over REST. Owned by the event loop."""

    def __init__(self, router: Router, ids: RequestIds, clock: Clock, metrics: Metrics, body_limit_bytes: int) -> None:
        self.router = router
        self._ids = ids
        self._clock = clock
        self._metrics = metrics
        self._body_limit_bytes = body_limit_bytes
        self.hot_path = HotDoor(self, ids, clock, body_limit_bytes)

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
                gate = self.router.resolve(target.name, target.version)
                call, reply = await infer(scope, receive, gate, head, request_id, received_ns, self._body_limit_bytes)
                await respond(cycle, reply.head.status, answer_headers(head, call, reply), reply.body)
                self.count(gate, call, reply.head.status)
            else:
                status, answer = oip.describe(self.router, scope["method"], scope["path"])
                await respond(cycle, status, b"content-type: application/json\r\n", orjson.dumps(answer))
        except ServeError as error:
            await self._refuse(cycle, error, request_id, gate)
        except ClientLeft:
            self._metrics.refusals.labels("client_left").inc()
        except Exception:
            log.exception("request failed inside the activator", extra={"request_id": request_id})
            await self._refuse(cycle, ServeError("Internal error: see the platform's log"), request_id, gate)
        finally:
            # Scope and cycle hold each other: bodies would stay until the collector comes round, beyond all bounds.
            scope.clear()

    async def _refuse(self, cycle: Any, error: ServeError, request_id: RequestId, gate: Gate | None) -> None:
        self.count_refusal(error, request_id, gate)
        is_late = isinstance(error, UploadTimeout)
        if cycle.more_body and (is_late or cycle.waiting_for_100_continue or not self._is_worth_reading(cycle)):
            cycle.keep_alive = False
        await respond(cycle, error.status, error_headers(error, request_id), orjson.dumps(error.body(request_id)))

    def _is_worth_reading(self, cycle: Any) -> bool:
        """Whether the rest of a refused body is read and dropped, so that its connection goes on: its end is known."""
        declared = next((int(value) for name, value in cycle.scope["headers"] if name == b"content-length"), None)
        return declared is not None and declared <= 2 * self._body_limit_bytes

    # The hot path ---------------------------------------------------------------------------------------------------

    def hot_gate(self, url: bytes) -> Gate | None:
        """Return the gate for the exact URL of a deployment's infer path; None sends the request through ASGI."""
        return self.router.gate_for(url)

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
