"""The hot path: one inference request over HTTP, from its head to its last byte.

No JSON is parsed here, no log line written, no lock held: the head is read, the body passes as it came.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from activator.accounts import format_cost
from activator.calls import Call, Reply
from activator.gate import Gate
from activator.server import CYCLE, ON_LEAVE
from serve.core.clock import NS_PER_MS, NS_PER_S
from serve.core.errors import BadRequest, TooLarge, Unsupported
from serve.core.frames import NO_JSON_LENGTH, Codec, Content
from serve.core.ids import RequestId

Receive = Callable[[], Awaitable[dict[str, Any]]]

_CONTENT_TYPES = {
    Content.JSON: b"application/json",
    Content.OIP_BINARY: b"application/octet-stream",
}
_SAFE_ID = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:/+=@-")


class ClientLeft(Exception):
    """The client closed its connection before the answer; there is nobody to tell."""


class Head:
    """What the activator reads of a request's headers."""

    __slots__ = ("client_id", "content_length", "json_length", "trace_id", "traceparent", "wait_s")

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.content_length: int | None = None
        self.json_length: int | None = None
        self.wait_s: float | None = None
        self.traceparent = b""
        self.trace_id = ""
        self.client_id = ""
        for name, value in headers:
            parse = _HEADERS.get(name)
            if parse is not None:
                parse(self, value)


def _content_length(head: Head, value: bytes) -> None:
    head.content_length = int(value)  # the HTTP parser let only digits through


def _json_length(head: Head, value: bytes) -> None:
    if not value.isdigit() or len(value) > 10 or int(value) > 0x7FFF_FFFF:
        raise BadRequest(
            f"inference header size should be in range (0, content length): Inference-Header-Content-Length is "
            f"'{value[:40].decode('latin-1')}', which is no byte count"
        )
    head.json_length = int(value)


def _prefer(head: Head, value: bytes) -> None:
    for preference in value.split(b","):
        key, _, given = preference.strip().partition(b"=")
        if key.strip().lower() == b"wait":
            try:
                wait_s = float(given)
            except ValueError:
                continue  # RFC 7240: a preference that is not understood is ignored
            if 0 <= wait_s < 1e6:
                head.wait_s = wait_s


def _content_encoding(_head: Head, value: bytes) -> None:
    if value.strip().lower() not in {b"", b"identity"}:
        raise Unsupported("Unsupported compression type: send the body without Content-Encoding")


def _traceparent(head: Head, value: bytes) -> None:
    parts = value.split(b"-")
    if len(parts) >= 4 and len(parts[1]) == 32 and len(parts[2]) == 16 and _is_hex(parts[1] + parts[2]):
        head.traceparent = value
        head.trace_id = parts[1].decode()


def _client_id(head: Head, value: bytes) -> None:
    if 0 < len(value) <= 128 and _SAFE_ID.issuperset(value):
        head.client_id = value.decode()


_HEADERS: dict[bytes, Callable[[Head, bytes], None]] = {
    b"content-length": _content_length,
    b"inference-header-content-length": _json_length,
    b"prefer": _prefer,
    b"content-encoding": _content_encoding,
    b"traceparent": _traceparent,
    b"x-request-id": _client_id,
}


def _is_hex(value: bytes) -> bool:
    return all(byte in b"0123456789abcdef" for byte in value)


def choose(weights: tuple[tuple[int, int], ...]) -> int:
    """Return a revision number by weight."""
    if len(weights) == 1:
        return weights[0][0]
    return random.choices([number for number, _ in weights], [weight for _, weight in weights])[0]  # noqa: S311


async def receive_body(receive: Receive, head: Head, gate: Gate, limit_bytes: int, deadline_ns: int) -> bytes:
    """Return the whole body, its bytes reserved at the gate. Raise TooLarge, QueueTimeout, ClientLeft."""
    declared = head.content_length
    if declared is None:
        body = await _read(receive, limit_bytes)
        await gate.reserve(len(body), deadline_ns)
        return body
    if declared > limit_bytes:
        raise _too_large(declared, limit_bytes)
    await gate.reserve(declared, deadline_ns)
    try:
        return await _read(receive, limit_bytes)
    except BaseException:
        gate.unreserve(declared)
        raise


async def _read(receive: Receive, limit_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    more_body = True
    while more_body:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientLeft
        body: bytes = message["body"]
        more_body = message["more_body"]
        size += len(body)
        if size > limit_bytes:
            raise _too_large(size, limit_bytes)
        parts.append(body)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def infer(
    scope: dict[str, Any], receive: Receive, gate: Gate, head: Head, request_id: RequestId, received_ns: int, limit: int
) -> tuple[Call, Reply]:
    """Run one request through `gate`. Raise ServeError, ClientLeft."""
    spec = gate.revision.spec
    wait_s = spec.timeout if head.wait_s is None else min(spec.timeout, head.wait_s)
    deadline_ns = received_ns + int(spec.timeout * NS_PER_S)
    wait_until_ns = received_ns + int(wait_s * NS_PER_S)
    gate.check_queue()
    body = await receive_body(receive, head, gate, limit, deadline_ns)
    json_length = head.json_length
    if json_length is None:
        codec, json_length = Codec.OIP, NO_JSON_LENGTH
    elif json_length == 0:
        codec, json_length = Codec.OIP_RAW, NO_JSON_LENGTH
    else:
        codec = Codec.OIP
        if json_length > len(body):
            gate.unreserve(len(body))
            raise BadRequest(
                f"inference header size should be in range (0, {len(body)}): Inference-Header-Content-Length says "
                f"{json_length}, the body has {len(body)} bytes"
            )
    answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    call = Call(request_id, gate.key, body, codec, json_length, received_ns, deadline_ns, wait_until_ns, answer)
    call.client_id = head.client_id
    call.trace_id = head.trace_id
    try:
        gate.submit(call)
    except BaseException:
        gate.unreserve(len(body))
        raise
    scope[ON_LEAVE] = call.leave
    if scope[CYCLE].disconnected:
        call.leave()
    try:
        reply = await answer
    except asyncio.CancelledError:
        if call.is_left:
            raise ClientLeft from None
        call.leave()
        raise
    return call, reply


def headers(head: Head, call: Call, reply: Reply) -> bytes:
    """Return the header lines of an answer."""
    lines = (
        b"content-type: %b\r\nx-serve-request-id: %b\r\n%bx-serve-cold-start: %d\r\nx-serve-cost: %b\r\n"
        b"server-timing: %b\r\n"
        % (
            _CONTENT_TYPES.get(reply.head.content, b"application/octet-stream"),  # type: ignore[call-overload]
            call.request_id.encode(),
            reply.replica_headers,
            call.is_cold,
            format_cost(reply.cost_nano, reply.currency),
            _server_timing(call, reply),
        )
    )
    if reply.head.content == Content.OIP_BINARY:
        lines += b"inference-header-content-length: %d\r\n" % reply.head.json_length
    if head.traceparent:
        lines += b"traceparent: %b\r\n" % child_traceparent(head.traceparent)
    return lines


def _server_timing(call: Call, reply: Reply) -> bytes:
    if call.phases:
        return b", ".join(b"%b;dur=%.3f" % (name.encode(), ns / NS_PER_MS) for name, ns in call.phases.items())
    queue_ms = (call.dispatched_ns - call.received_ns) / NS_PER_MS
    return b"queue;dur=%.3f, infer;dur=%.3f" % (queue_ms, reply.usage.infer_ns / NS_PER_MS)


def child_traceparent(traceparent: bytes) -> bytes:
    """Return a traceparent of the same trace with a span id of our own (W3C Trace Context)."""
    version, trace_id, _, flags = traceparent.split(b"-")[:4]
    return b"-".join((version, trace_id, secrets.token_hex(8).encode(), flags))


def _too_large(size: int, limit: int) -> TooLarge:
    return TooLarge(
        f"The body has {size} bytes or more, the limit is {limit}: send fewer rows, or raise SERVE_BODY_LIMIT"
    )
