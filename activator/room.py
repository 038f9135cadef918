"""Room: how many body bytes a gate may hold. Who finds none waits in line, and its socket is not read meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque

PART_BYTES = 64 * 1024


class Room:
    """A byte bound with a fair line. Owned by the event loop.

    What has come is counted, whatever the bound says, since it is there; what has not come is not read beyond the
    bound. Bodies that are half there would wait for each other for ever where they fill the room among themselves:
    then the first in line is read on, alone. So the bound is exceeded by one body at most, and by what one read
    brings of each body that is being read. Who leaves the line, or is called and leaves, passes the call on.
    """

    __slots__ = ("_line", "_part_bytes", "_stuck_bytes", "held_bytes", "limit_bytes")

    def __init__(self, limit_bytes: int, part_bytes: int = PART_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._part_bytes = part_bytes
        """Taken for who is called from the line, until it is known what comes: not all there are called at once."""
        self._line: deque[tuple[asyncio.Future[int], int]] = deque()
        self._stuck_bytes = 0
        """Held by those who wait in line for room for more."""

    @property
    def is_over(self) -> bool:
        """More is held than should be."""
        return self.held_bytes > self.limit_bytes

    @property
    def waiting(self) -> int:
        """How many wait in line."""
        return len(self._line)

    def try_reserve(self, size: int) -> bool:
        """Take `size` bytes, which are to come at once, if nobody waits and they fit; alone anything does."""
        if self._line or (self.held_bytes and self.held_bytes + size > self.limit_bytes):
            return False
        self.held_bytes += size
        return True

    def take(self, size: int) -> None:
        """Count bytes that have come."""
        self.held_bytes += size

    def release(self, size: int) -> None:
        """Give bytes back: the call is done, or its body never came."""
        self.held_bytes -= size
        if self._line:
            self._call()

    async def wait(self, mine: int, *, again: bool = False) -> int:
        """Return when more may be read by one who holds `mine` bytes already, and what was taken for that.

        Who was called before goes before the others, so that what is begun is ended.
        """
        if not self._line and self.held_bytes < self.limit_bytes:
            return 0
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        place = (turn, mine)
        (self._line.appendleft if again else self._line.append)(place)
        self._stuck_bytes += mine
        self._call()
        try:
            return await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.release(turn.result())
            elif place in self._line:
                self._line.remove(place)
                self._stuck_bytes -= mine
                self._call()  # who is behind may be the first now
            raise

    def _call(self) -> None:
        while self._line and (
            self.held_bytes + self._part_bytes <= self.limit_bytes or self.held_bytes == self._stuck_bytes
        ):
            turn, mine = self._line.popleft()
            self._stuck_bytes -= mine
            if not turn.done():  # cancelled, and about to leave
                self.held_bytes += self._part_bytes
                turn.set_result(self._part_bytes)
