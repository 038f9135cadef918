"""Reading a body that does not come with its head: under the gate's byte bound, the deadline and the body limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from activator import refusals
from activator.calls import ClientLeft
from activator.gate import Gate
from activator.head import Head
from activator.inflate import Inflater
from activator.server import CYCLE, ON_LEAVE
from serve.core.errors import TooLarge

Receive = Callable[[], Awaitable[dict[str, Any]]]


class Upload:
    """One body on its way. The room it takes is its call's from `read` on; an `Upload` that fails gives it back."""

    def __init__(
        self, scope: dict[str, Any], receive: Receive, gate: Gate, head: Head, limit_bytes: int, deadline_ns: int
    ) -> None:
        self._scope = scope
        self._cycle = scope[CYCLE]
        self._receive = receive
        self._gate = gate
        self._head = head
        self._limit_bytes = limit_bytes
        self._deadline_ns = deadline_ns
        self._parts: list[bytes] = []
        self._size = 0
        self._granted = 0
        """Taken at the gate for what has not come yet."""
        self._was_called = False

    async def read(self) -> bytes:
        """Return the whole body, unpacked, its bytes taken. Raise ServeError, ClientLeft."""
        declared = self._head.content_length
        if declared is not None and declared > self._limit_bytes:
            raise self._too_large(declared)
        try:
            await (self._read_compressed() if self._head.is_compressed else self._read())
        except BaseException:
            self._gate.room.release(self._size + self._granted)
            raise
        self._settle()
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    async def _read(self) -> None:
        more = True
        while more:
            part, more = await self._next()
            self._take(part)

    async def _read_compressed(self) -> None:
        inflater = Inflater()
        more = True
        while more:
            part, more = await self._next()
            for piece in inflater.pieces(part):
                self._take(piece)
                await asyncio.sleep(0)  # unpacking is work: others have their turn
                await self._wait_for_room()
        inflater.finish()

    def _take(self, part: bytes) -> None:
        self._size += len(part)
        self._gate.room.take(len(part))
        self._settle()
        if self._size > self._limit_bytes:
            raise self._too_large(self._size)
        self._parts.append(part)

    def _settle(self) -> None:
        """What was taken for a part that has come by now is free."""
        granted, self._granted = self._granted, 0
        if granted:
            self._gate.room.release(granted)

    async def _next(self) -> tuple[bytes, bool]:
        """Return what has come, or comes next, and whether there is more; not read before there is room for it."""
        if not self._cycle.body and self._cycle.more_body:
            await self._wait_for_room()
        try:
            async with asyncio.timeout(self._gate.left_s(self._deadline_ns)):
                message = await self._receive()
        except TimeoutError:
            raise self._gate.upload_timeout() from None
        if message["type"] != "http.request":
            raise ClientLeft
        return message["body"], message["more_body"]

    async def _wait_for_room(self) -> None:
        self._settle()
        room, gate = self._gate.room, self._gate
        if not room.waiting and room.held_bytes < room.limit_bytes:
            return
        self._cycle.flow.pause_reading()
        if room.waiting >= max(1, gate.revision.spec.queue):
            raise refusals.queue_full(gate.key, gate.pending, gate.retry_after_s())
        if self._cycle.disconnected:
            raise ClientLeft
        try:
            async with asyncio.timeout(gate.left_s(self._deadline_ns)) as limit:
                self._scope[ON_LEAVE] = lambda: None if limit.expired() else limit.reschedule(0.0)
                self._granted = await room.wait(self._size, again=self._was_called)
                self._was_called = True
        except TimeoutError:
            if self._cycle.disconnected:
                raise ClientLeft from None
            raise refusals.queue_timeout(gate.key, gate.retry_after_s()) from None
        finally:
            self._scope.pop(ON_LEAVE, None)

    def _too_large(self, size: int) -> TooLarge:
        return TooLarge(
            f"The body has {size} bytes or more, the limit is {self._limit_bytes}: send fewer rows, or raise "
            "SERVE_BODY_LIMIT"
        )
