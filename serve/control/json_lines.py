"""Answers as JSON lines that come while the work goes on, and end with the client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from starlette.types import Receive, Send


class JsonLines:
    """The lines of one answer. Owned by its request."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting: list[bytes] = []
        self._has_waiting = asyncio.Event()
        self._sending = asyncio.Lock()

    def put(self, line: dict[str, Any]) -> None:
        """Queue a line; it is sent at the next chance. For a lot of lines, await `flush` now and then."""
        self._waiting.append(orjson.dumps(line, default=str))
        self._has_waiting.set()

    async def flush(self) -> None:
        """Send what is queued; returns when the connection took it."""
        async with self._sending:
            if self._waiting:
                body = b"\n".join(self._waiting) + b"\n"
                self._waiting.clear()
                await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def send_on(self) -> None:
        while True:
            await self._has_waiting.wait()
            self._has_waiting.clear()
            await self.flush()


class _ClientLeftError(Exception):
    pass


async def stream(receive: Receive, send: Send, work: Callable[[JsonLines], Awaitable[None]]) -> None:
    """Answer 200 with the lines that `work` puts. A client that leaves cancels `work`."""
    headers = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    lines = JsonLines(send)
    has_left = False
    try:
        async with asyncio.TaskGroup() as group:
            helpers = [group.create_task(_watch(receive)), group.create_task(lines.send_on())]
            await work(lines)
            for helper in helpers:
                helper.cancel()
    except* _ClientLeftError:
        has_left = True
    if has_left:
        return
    await lines.flush()
    await send({"type": "http.response.body", "body": b""})


async def _watch(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise _ClientLeftError
