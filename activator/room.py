"""Room: how many body bytes a gate may hold. Who finds none waits in line, and its socket is not read meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable


class Room:
    """A byte bound with a fair line. Owned by the event loop.

    A body larger than the whole bound gets in when nothing else is held. Whoever leaves the line, or is called and
    leaves, passes the call on: nobody behind waits for it.
    """

    __slots__ = ("_line", "held_bytes", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._line: deque[asyncio.Future[None]] = deque()

    def try_reserve(self, size: int) -> bool:
        """Reserve `size` bytes if that needs no waiting."""
        if self._line or not self._fits(size):
            return False
        self.held_bytes += size
        return True

    async def reserve(self, size: int, timeout_s: float) -> None:
        """Reserve `size` bytes as soon as they fit. Raise TimeoutError."""
        if self.try_reserve(size):
            return
        async with asyncio.timeout(max(0.0, timeout_s)):
            await self._turn(self._line.append)
            while not self._fits(size):
                await self._turn(self._line.appendleft)  # called too early: it keeps its place
        self.held_bytes += size
        if self.held_bytes < self.limit_bytes:
            self._call_next()

    def release(self, size: int) -> None:
        """Give bytes back: the call is done, or its body never came."""
        self.held_bytes -= size
        if self._line:
            self._call_next()

    async def _turn(self, join: Callable[[asyncio.Future[None]], None]) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        join(turn)
        try:
            await turn
        except BaseException:
            with contextlib.suppress(ValueError):
                self._line.remove(turn)
            # Whoever is behind may fit where this one did not.
            self._call_next()
            raise

    def _fits(self, size: int) -> bool:
        return not self.held_bytes or self.held_bytes + size <= self.limit_bytes

    def _call_next(self) -> None:
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
