"""The meter: splits a replica's busy time among the requests inside it, exactly and in O(1) per event.

Busy = instants with at least one request inside. At each instant the time belongs to the requests inside in
proportion to their rows. A virtual clock V advances by dt / (rows inside); a request's share is
rows · (V at leaving - V at entering) (the virtual time of weighted fair queueing: Demers, Keshav and Shenker,
SIGCOMM 1989). All arithmetic is on integers: remainders are carried, never dropped, so that at every idle instant
the shares handed out sum to the busy time to the nanosecond.

Pure and standard library only: the replica runs it, the simulator runs it.
"""

from __future__ import annotations

_SCALE_BITS = 40
"""Fixed-point bits of V. One tick of V is 2^-40 ns of busy time for one row."""


class BusyMeter:
    """Virtual clock of one replica. Owned by the replica's main thread (or the simulator).

    All times are nanoseconds of one monotonic clock and must not go backwards.
    """

    __slots__ = ("_carry", "_handed", "_owed", "_rows", "_since_ns", "_virtual", "total_busy_ns", "total_share_ns")

    def __init__(self) -> None:
        self.total_busy_ns = 0
        """Busy time up to the last event."""
        self.total_share_ns = 0
        """Shares handed out up to the last event; equals `total_busy_ns` whenever nothing is inside."""
        self._rows = 0
        self._since_ns = 0
        self._virtual = 0
        self._carry = 0
        self._owed = 0
        self._handed = 0

    def enter(self, rows: int, now_ns: int) -> int:
        """A request of `rows` ≥ 1 comes in. Return the ticket to give to `leave`."""
        self._advance(now_ns)
        self._rows += rows
        return self._virtual

    def leave(self, ticket: int, rows: int, now_ns: int) -> int:
        """The request leaves. Return its share of busy time in ns."""
        self._advance(now_ns)
        self._rows -= rows
        self._owed += rows * (self._virtual - ticket)
        if self._rows == 0:
            # The last one out takes the remainders, so that shares and busy time meet here.
            share = self.total_busy_ns - self.total_share_ns
            self._virtual = self._carry = self._owed = self._handed = 0
        else:
            whole = self._owed >> _SCALE_BITS
            share = whole - self._handed
            self._handed = whole
        self.total_share_ns += share
        return share

    def busy_ns(self, now_ns: int) -> int:
        """Return the busy time of the life so far, the current stretch included."""
        return self.total_busy_ns + (max(0, now_ns - self._since_ns) if self._rows else 0)

    def _advance(self, now_ns: int) -> None:
        elapsed = now_ns - self._since_ns
        if elapsed < 0:
            raise ValueError(f"time went back by {-elapsed} ns")
        if self._rows and elapsed:
            self.total_busy_ns += elapsed
            step, self._carry = divmod((elapsed << _SCALE_BITS) + self._carry, self._rows)
            self._virtual += step
        self._since_ns = now_ns
