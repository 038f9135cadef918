"""One inference request through ASGI: the path for bodies that are large, chunked, compressed or must wait for room.

Small ones take the hot path (`activator.hot`); both end in the same gate.
"""

from __future__ import annotations

from typing import Any

from activator.calls import AwaitedCall, Call, Reply
from activator.gate import Gate
from activator.head import Head
from activator.server import CYCLE, ON_LEAVE
from activator.upload import Receive, Upload
from serve.core.ids import RequestId


async def infer(
    scope: dict[str, Any], receive: Receive, gate: Gate, head: Head, request_id: RequestId, received_ns: int, limit: int
) -> tuple[Call, Reply]:
    """Run one request through `gate`. Raise ServeError, ClientLeft."""
    gate.check_queue()
    deadline_ns = received_ns + gate.timeout_ns
    body = await Upload(scope, receive, gate, head, limit, deadline_ns).read()
    try:
        wait_until_ns = head.wait_until_ns(received_ns, deadline_ns)
        call = AwaitedCall(request_id, gate.key, body, 0, 0, received_ns, deadline_ns, wait_until_ns)
        head.describe(call)
        gate.submit(call)
    except BaseException:
        gate.room.release(len(body))
        raise
    scope[ON_LEAVE] = call.leave
    if scope[CYCLE].disconnected:
        call.leave()
    return call, await call.reply()
