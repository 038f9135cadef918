"""All connections of one door: how many there may be, and what they may leave unread together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from activator.limits import SPARE, Limits
from serve.core.errors import TooManyConnections

if TYPE_CHECKING:
    from activator.server import FrontDoorProtocol

_FREED_SHARE = 16
"""One in this many is closed when there are too many, so that not every newcomer looks at all of them."""


class Crowd:
    """Owned by the event loop. `members` are the connections that are open."""

    def __init__(self, limits: Limits, members: set[FrontDoorProtocol]) -> None:
        self.members = members
        self.is_draining = False
        self._limits = limits
        self._busy: set[FrontDoorProtocol] = set()
        self._somebody_left = asyncio.Event()
        self._leaving: set[FrontDoorProtocol] = set()
        """Those that were closed here and have not ended yet."""
        self._slow: dict[FrontDoorProtocol, None] = {}
        """Those that have not taken what they were sent, in the order in which that began."""

    def came(self, newcomer: FrontDoorProtocol) -> None:
        """Make room for one more: close who waits longest without a request, or turn the newcomer away."""
        excess = len(self.members) - len(self._leaving) - self._limits.connections
        if excess <= 0 or self._close_idle(newcomer):
            return
        if excess > SPARE:
            newcomer.transport.abort()
            return
        newcomer.turn_away(
            TooManyConnections(
                f"{self._limits.connections} connections are open and busy: retry later, or raise SERVE_CONNECTIONS",
                retry_after_s=1.0,
            )
        )

    def left(self, connection: FrontDoorProtocol) -> None:
        self._leaving.discard(connection)
        self._slow.pop(connection, None)
        self._busy.discard(connection)
        if not self._busy:
            self._somebody_left.set()

    async def finished(self) -> None:
        """Return when none of those who are here now is owed anything: in a drain, in which who is answered leaves."""
        here = set(self.members)
        while busy := {member for member in here & self.members if not member.is_resting or member.is_asking}:
            self._busy = busy
            await self._next_departure()

    async def emptied(self) -> None:
        """Return when every connection has ended."""
        while self.members:
            self._busy = set(self.members)
            await self._next_departure()

    async def _next_departure(self) -> None:
        self._somebody_left.clear()
        await self._somebody_left.wait()

    def reads_slowly(self, connection: FrontDoorProtocol) -> None:
        """Cut who began first to leave answers unread, where all together leave too much."""
        self._slow[connection] = None
        unread_bytes = sum(slow.transport.get_write_buffer_size() for slow in self._slow)
        for slow in list(self._slow):
            if unread_bytes <= self._limits.unread_bytes or slow is connection:
                return
            unread_bytes -= slow.transport.get_write_buffer_size()
            del self._slow[slow]
            slow.transport.abort()

    def reads_on(self, connection: FrontDoorProtocol) -> None:
        self._slow.pop(connection, None)

    def _close_idle(self, newcomer: FrontDoorProtocol) -> bool:
        idle = [member for member in self.members if member.is_resting and member is not newcomer]
        idle.sort(key=lambda member: member.idle_since_s)
        closed = idle[: max(1, len(self.members) // _FREED_SHARE)]
        self._leaving.update(closed)
        for member in closed:
            member.transport.abort()
        return bool(closed)
