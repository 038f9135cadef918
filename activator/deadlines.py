"""One timer that serves any number of deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serve.core.clock import NS_PER_MS, NS_PER_S, Clock

RESOLUTION_NS = NS_PER_MS
"""Event loops count in milliseconds: a deadline is seen to this much late, never early."""


class Deadlines:
    """Fires at the earliest of the instants it was armed for. Owned by the event loop.

    `check(now_ns)` ends what has expired and returns the earliest instant that is left, or None. An instant that is
    not needed any more costs one look at it, not a timer each for all that never needed it.
    """

    __slots__ = ("_at_ns", "_check", "_clock", "_loop", "_timer")

    def __init__(self, clock: Clock, check: Callable[[int], int | None]) -> None:
        self._clock = clock
        self._check = check
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._at_ns = 0

    def arm(self, at_ns: int) -> None:
        """See to it that `check` is called at `at_ns` or before, though never within this turn of the loop."""
        if self._timer is not None:
            if self._at_ns <= at_ns:
                return
            self._timer.cancel()
        self._at_ns = at_ns
        delay_ns = max(RESOLUTION_NS, at_ns - self._clock.monotonic_ns())
        self._timer = self._loop.call_later(delay_ns / NS_PER_S, self._fire)

    def close(self) -> None:
        """Forget what is armed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        next_ns = self._check(self._clock.monotonic_ns())
        if next_ns is not None:
            self.arm(next_ns)
