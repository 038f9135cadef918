"""All the instants at which something must be looked at again, on one timer of the loop."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Hashable

from serve.core.clock import NS_PER_US, Clock

Callback = Callable[[], None]


class Timers:
    """At most one due time per token, in a heap; the loop holds one timer, for the earliest. Owned by the loop.

    Moving a due time back leaves the heap's entry where it is, to be put right when it comes up, so that a due time
    pushed back a thousand times a second costs nothing.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: dict[Hashable, tuple[int, Callback]] = {}
        self._heap: list[tuple[int, int, Hashable]] = []
        self._earliest_entry_ns: dict[Hashable, int] = {}
        self._sequence = itertools.count()
        self._handle: asyncio.TimerHandle | None = None
        self._armed_ns = 0

    def __len__(self) -> int:
        """Return how many tokens wait for their time."""
        return len(self._due)

    def set(self, token: Hashable, at_ns: int, callback: Callback) -> None:
        """Call `callback` at `at_ns`, once, instead of whatever was set for the token."""
        self._due[token] = (at_ns, callback)
        known_ns = self._earliest_entry_ns.get(token)
        if known_ns is None or at_ns < known_ns:
            self._push(token, at_ns)
            self._arm()

    def advance(self, token: Hashable, at_ns: int, callback: Callback) -> None:
        """Call `callback` at `at_ns`, or when the token is due already if that is sooner."""
        known = self._due.get(token)
        if known is None or at_ns < known[0]:
            self.set(token, at_ns, callback)

    def cancel(self, token: Hashable) -> None:
        """Forget the token. Without any token left, no timer is left either."""
        self._due.pop(token, None)
        if not self._due:
            self.close()

    def close(self) -> None:
        self._due.clear()
        self._heap.clear()
        self._earliest_entry_ns.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _push(self, token: Hashable, at_ns: int) -> None:
        self._earliest_entry_ns[token] = at_ns
        heapq.heappush(self._heap, (at_ns, next(self._sequence), token))

    def _arm(self) -> None:
        at_ns = self._heap[0][0]
        if self._handle is not None:
            if self._armed_ns <= at_ns:
                return
            self._handle.cancel()
        self._armed_ns = at_ns
        # Whole microseconds, rounded up: woken a nanosecond early, a loop with a coarse clock would spin.
        delay_us = max(1, -((self._clock.monotonic_ns() - at_ns) // NS_PER_US))
        loop = asyncio.get_running_loop()
        self._handle = loop.call_at(loop.time() + delay_us / 1e6, self._fire)

    def _fire(self) -> None:
        self._handle = None
        try:
            self._call_due(self._clock.monotonic_ns())
        finally:
            # One callback that fails must not stop the clock of all others.
            if self._heap and self._handle is None:
                self._arm()

    def _call_due(self, now_ns: int) -> None:
        while self._heap and self._heap[0][0] <= now_ns:
            at_ns, _, token = heapq.heappop(self._heap)
            if self._earliest_entry_ns.get(token) != at_ns:
                continue
            del self._earliest_entry_ns[token]
            due = self._due.get(token)
            if due is None:
                continue
            if due[0] > now_ns:
                self._push(token, due[0])
                continue
            del self._due[token]
            due[1]()
