"""How many calls a gate has had, over time: what the autoscaler samples. Pure."""

from __future__ import annotations

from serve.core.scaling import Demand


class Load:
    """Concurrency of one gate: its integral, peak and arrivals. Owned by its gate.

    A call counts from `came` to `ended`, whether it waits or is inside a replica: what moves between the two changes
    nothing here. `now_ns` never goes back.
    """

    __slots__ = ("_arrivals", "_changed_ns", "_integral_ns", "_peak", "_turned_away", "concurrency", "last_active_ns")

    def __init__(self) -> None:
        self.concurrency = 0
        """Calls that came and have not ended."""
        self.last_active_ns = 0
        """When a call last came to an end, or was turned away; 0 = never."""
        self._arrivals = 0
        self._turned_away = 0
        self._peak = 0
        self._integral_ns = 0
        self._changed_ns = 0

    def came(self, now_ns: int) -> None:
        """A call is accepted."""
        concurrency = self.concurrency
        self._integral_ns += concurrency * (now_ns - self._changed_ns)
        self._changed_ns = now_ns
        self._arrivals += 1
        self.concurrency = concurrency = concurrency + 1
        if concurrency > self._peak:
            self._peak = concurrency

    def ended(self, now_ns: int) -> None:
        """A call that came is answered, refused or left."""
        self._integral_ns += self.concurrency * (now_ns - self._changed_ns)
        self._changed_ns = self.last_active_ns = now_ns
        self.concurrency -= 1

    def turned_away(self, now_ns: int) -> None:
        """A call came that could not be accepted: it counts as demand for an instant."""
        self._arrivals += 1
        self._turned_away += 1
        self._peak = max(self._peak, self.concurrency + 1)
        self.last_active_ns = now_ns

    def demand(self, pending: int, now_ns: int) -> Demand:
        """Return what the autoscaler samples, `pending` of the calls here not being inside; resets the peak."""
        self._integral_ns += self.concurrency * (now_ns - self._changed_ns)
        self._changed_ns = now_ns
        peak, self._peak = self._peak, self.concurrency
        return Demand(
            in_flight=self.concurrency - pending,
            pending=pending,
            concurrency_ns=self._integral_ns,
            peak=peak,
            arrivals=self._arrivals,
            turned_away=self._turned_away,
            last_active_ns=now_ns if self.concurrency else self.last_active_ns,
        )
