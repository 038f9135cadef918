"""The hot path: a small inference request without a task, a scope, a future or a lock.

The head is read in the HTTP parser's callback, the call is dispatched when its last body byte is there, and the
answer is written in the callback of the replica's socket, after its record. What needs to wait before its body is
read, or has no length, goes through ASGI (`activator.infer`) instead.
"""

from __future__ import annotations

from typing import Protocol

import orjson

from activator.calls import Call, Outcome
from activator.gate import Gate
from activator.head import Head, answer_headers, error_headers
from activator.infer import make_call
from activator.server import FrontDoorProtocol, HotRequest, write_answer
from serve.core.clock import Clock
from serve.core.errors import ServeError
from serve.core.ids import RequestId, RequestIds

HOT_BODY_BYTES = 64 * 1024
"""Longer bodies are read under flow control, through ASGI."""


class HotApp(Protocol):
    """The activator, as the hot path sees it."""

    def hot_gate(self, url: bytes) -> Gate | None:
        """Return the gate of the exact URL of a deployment's infer path, or None for any other."""

    def count(self, gate: Gate, call: Call, status: int) -> None: ...

    def count_refusal(self, error: ServeError) -> None: ...


class HotDoor:
    """Decides at the end of a request's head whether it is hot. Owned by the event loop. A `server.HotPath`."""

    def __init__(self, app: HotApp, ids: RequestIds, clock: Clock, body_limit_bytes: int) -> None:
        self._app = app
        self._ids = ids
        self._clock = clock
        self._body_bytes = min(HOT_BODY_BYTES, body_limit_bytes)

    def admit(self, connection: FrontDoorProtocol) -> HotRequest | None:
        gate = self._app.hot_gate(connection.url)
        if gate is None or connection.parser.get_method() != b"POST" or connection.flow.write_paused:
            return None
        received_ns = self._clock.monotonic_ns()
        try:
            head = Head(connection.headers)
        except ServeError:
            return None  # ASGI's way of refusing serves
        size = head.content_length
        if size is None or size > self._body_bytes or head.expects_continue or not gate.try_reserve(size):
            return None
        return _Request(self._app, connection, gate, head, size, self._ids.next(), received_ns)


class _Request:
    """One hot request on one connection."""

    __slots__ = (
        "_app",
        "_body",
        "_call",
        "_connection",
        "_gate",
        "_head",
        "_received_ns",
        "_request_id",
        "_size",
        "keep_alive",
        "response_complete",
    )

    def __init__(
        self,
        app: HotApp,
        connection: FrontDoorProtocol,
        gate: Gate,
        head: Head,
        size: int,
        request_id: RequestId,
        received_ns: int,
    ) -> None:
        self._app = app
        self._connection = connection
        self._gate = gate
        self._head = head
        self._size = size
        self._request_id = request_id
        self._received_ns = received_ns
        self._body = b""
        self._call: Call | None = None
        self.response_complete = False
        self.keep_alive = connection.parser.should_keep_alive()
        """uvicorn's server sets it False when it shuts down."""

    def body_received(self, part: bytes) -> None:
        self._body = self._body + part if self._body else part

    def complete(self) -> None:
        try:
            call = make_call(self._request_id, self._gate, self._head, self._body, self._received_ns, self._done)
            self._call = call
            self._gate.submit(call)
        except ServeError as error:
            self._gate.unreserve(self._size)
            self._refuse(error)

    def client_left(self) -> None:
        if self._call is None:
            self._gate.unreserve(self._size)
        else:
            self._call.leave()

    def _done(self, call: Call, outcome: Outcome) -> None:
        if outcome is None:
            return
        if isinstance(outcome, ServeError):
            self._refuse(outcome)
            return
        status = outcome.head.status
        self._write(status, answer_headers(self._head, call, outcome), outcome.body)
        self._app.count(self._gate, call, status)

    def _refuse(self, error: ServeError) -> None:
        self._app.count_refusal(error)
        self._write(error.status, error_headers(error, self._request_id), orjson.dumps(error.body(self._request_id)))

    def _write(self, status: int, headers: bytes, body: bytes | memoryview) -> None:
        connection = self._connection
        self.response_complete = True
        write_answer(connection.transport, status, headers, body, content_length=len(body), keep_alive=self.keep_alive)
        connection.on_response_complete()
