"""The hot path: a small inference request without a task, a scope, a future or a lock.

The head is read in the HTTP parser's callback, the call is dispatched when its last body byte is there, and the
answer is written in the callback of the replica's socket, after its record. What needs to wait before its body is
read, or has no length, goes through ASGI (`activator.infer`) instead.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import orjson

from activator import refusals
from activator.answer import write_answer
from activator.calls import Call, Outcome
from activator.gate import Gate
from activator.head import Head, answer_headers, error_headers
from activator.server import FrontDoorProtocol, HotRequest
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

    def count_refusal(self, error: ServeError, request_id: RequestId, gate: Gate | None) -> None: ...


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
        version = connection.parser.get_http_version()
        if version != "1.1" and version != "1.0":
            return None
        received_ns = self._clock.monotonic_ns()
        try:
            head = Head(connection.headers)
        except ServeError:
            return None  # ASGI's way of refusing serves
        size = head.content_length
        if size is None or size > self._body_bytes or head.is_special or not gate.room.try_reserve(size):
            return None
        keep_alive = version == "1.1" and connection.parser.should_keep_alive()
        return _HotCall(self._app, connection, gate, head, size, self._ids.next(), received_ns, keep_alive)


class _HotCall(Call):
    """A request on the hot path and its connection. A `server.HotRequest`.

    It is a call from its head on, but the gate sees it only when its body is complete.
    """

    __slots__ = (
        "_app",
        "_come_bytes",
        "_connection",
        "_deadline_timer",
        "_gate",
        "_head",
        "_more",
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
        keep_alive: bool,
    ) -> None:
        deadline_ns = received_ns + gate.timeout_ns
        wait_until_ns = head.wait_until_ns(received_ns, deadline_ns)
        super().__init__(request_id, gate.key, b"", 0, 0, received_ns, deadline_ns, wait_until_ns)
        self._app = app
        self._connection = connection
        self._gate = gate
        self._head = head
        self._deadline_timer: asyncio.TimerHandle | None = None
        """Runs while the body is on its way and did not come with the head."""
        self._size = size
        """Bytes reserved at the gate."""
        self._more: list[bytes] | None = None
        """Of the body, behind its first part."""
        self._come_bytes = 0
        """Of the body; without its first part while nothing was waited for."""
        self.response_complete = False
        self.keep_alive = keep_alive
        """The connection sets it False when no more is asked on it."""

    def body_received(self, part: bytes) -> None:
        if not self.body:
            self.body = part
            if self._deadline_timer is not None:
                self._come_bytes += len(part)
            return
        if self._more is None:
            self._more = []
        self._more.append(part)
        self._come_bytes += len(part)

    def wait_for_body(self) -> None:
        """From now on only what has come is reserved: who announces much and sends nothing takes nobody's room."""
        room = self._gate.room
        if self._deadline_timer is None:
            left_s = self._gate.left_s(self.deadline_ns)
            self._deadline_timer = asyncio.get_running_loop().call_later(left_s, self._body_overdue)
            self._come_bytes += len(self.body)
            room.release(self._size - self._come_bytes)
        else:
            room.take(self._come_bytes - self._size)
        self._size = self._come_bytes
        if room.is_over:
            gate = self._gate
            error = refusals.queue_full(gate.key, gate.pending, gate.retry_after_s())
            self._connection.give_up_body(error)

    def complete(self) -> None:
        if self._more is not None:
            self.body = b"".join((self.body, *self._more))
            self._more = None
        if self._deadline_timer is not None:
            self._cancel_timer()
            self._gate.room.take(len(self.body) - self._size)
            self._size = len(self.body)
        try:
            self._head.describe(self)
            self._gate.submit(self)
        except ServeError as error:
            self._gate.room.release(self._size)
            self.refuse(error)

    def client_left(self) -> None:
        if self.on_leave is None:
            self._cancel_timer()
            self._gate.room.release(self._size)
        else:
            self.leave()

    def give_up_body(self, error: ServeError) -> None:
        self._cancel_timer()
        self._gate.room.release(self._size)
        self.keep_alive = False
        self.refuse(error)

    def _body_overdue(self) -> None:
        self._deadline_timer = None
        self._connection.give_up_body(self._gate.upload_timeout())

    def _cancel_timer(self) -> None:
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
            self._deadline_timer = None

    def ended(self, outcome: Outcome) -> None:
        if outcome is None:
            return
        if isinstance(outcome, ServeError):
            self._app.count_refusal(outcome, self.request_id, self._gate)
            headers, status = error_headers(outcome, self.request_id), outcome.status
            body: bytes | memoryview = orjson.dumps(outcome.body(self.request_id))
            if not self.dispatched_ns:
                self.body = b""  # in no replica, so in no record: a connection at rest holds its last call
        else:
            headers, status = answer_headers(self._head, self, outcome), outcome.head.status
            body = outcome.body
            self._app.count(self._gate, self, status)
            self.body = b""  # accounted
        self.response_complete = True
        connection = self._connection
        write_answer(connection.transport, status, headers, body, content_length=len(body), keep_alive=self.keep_alive)
        connection.on_response_complete()
