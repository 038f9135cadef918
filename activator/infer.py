"""One inference request through ASGI: the path for bodies that are large, chunked or must wait for room.

Small ones take the hot path (`activator.hot`); both end in the same gate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from activator.calls import AwaitedCall, Call, ClientLeft, Reply
from activator.gate import Gate
from activator.head import Head
from activator.server import CYCLE, ON_LEAVE
from serve.core.clock import NS_PER_S
from serve.core.errors import TooLarge
from serve.core.ids import RequestId

Receive = Callable[[], Awaitable[dict[str, Any]]]


async def infer(
    scope: dict[str, Any], receive: Receive, gate: Gate, head: Head, request_id: RequestId, received_ns: int, limit: int
) -> tuple[Call, Reply]:
    """Run one request through `gate`. Raise ServeError, ClientLeft."""
    gate.check_queue()
    deadline_ns = received_ns + int(gate.revision.spec.timeout * NS_PER_S)
    body = await receive_body(receive, head, gate, limit, deadline_ns)
    try:
        codec, json_length = head.codec(len(body))
        wait_until_ns = head.wait_until_ns(received_ns, deadline_ns)
        call = AwaitedCall(request_id, gate.key, body, codec, json_length, received_ns, deadline_ns, wait_until_ns)
        call.client_id = head.client_id
        call.trace_id = head.trace_id
        gate.submit(call)
    except BaseException:
        gate.room.release(len(body))
        raise
    scope[ON_LEAVE] = call.leave
    if scope[CYCLE].disconnected:
        call.leave()
    return call, await call.reply()


async def receive_body(receive: Receive, head: Head, gate: Gate, limit_bytes: int, deadline_ns: int) -> bytes:
    """Return the whole body, its bytes reserved. Raise TooLarge, QueueTimeout, UploadTimeout, ClientLeft."""
    declared = head.content_length
    if declared is None:
        body = await _read(receive, limit_bytes, gate, deadline_ns)
        await gate.reserve(len(body), deadline_ns)
        return body
    if declared > limit_bytes:
        raise too_large(declared, limit_bytes)
    await gate.reserve(declared, deadline_ns)
    try:
        return await _read(receive, limit_bytes, gate, deadline_ns)
    except BaseException:
        gate.room.release(declared)
        raise


async def _read(receive: Receive, limit_bytes: int, gate: Gate, deadline_ns: int) -> bytes:
    try:
        async with asyncio.timeout(gate.left_s(deadline_ns)):
            return await _read_all(receive, limit_bytes)
    except TimeoutError:
        raise gate.upload_timeout() from None


async def _read_all(receive: Receive, limit_bytes: int) -> bytes:
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
            raise too_large(size, limit_bytes)
        parts.append(body)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def too_large(size: int, limit: int) -> TooLarge:
    return TooLarge(
        f"The body has {size} bytes or more, the limit is {limit}: send fewer rows, or raise SERVE_BODY_LIMIT"
    )
