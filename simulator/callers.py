"""Calls on paper, and who makes them."""

from __future__ import annotations

from collections.abc import Callable

from activator.calls import Call, Outcome, Reply
from serve.core.clock import NS_PER_S
from serve.core.errors import ServeError
from serve.core.frames import NO_JSON_LENGTH, Codec
from serve.core.ids import RequestId, RevisionKey
from simulator.work import Work


class SimulatedCall(Call):
    """A call that remembers how it ended. `on_end` hears of each end: there must be exactly one."""

    __slots__ = ("_on_end", "ended_ns", "ends", "outcome", "work")

    def __init__(
        self,
        request_id: RequestId,
        key: RevisionKey,
        work: Work,
        now_ns: int,
        timeout_s: float,
        wait_s: float | None,
        size_bytes: int,
        on_end: Callable[[SimulatedCall], None],
    ) -> None:
        deadline_ns = now_ns + int(timeout_s * NS_PER_S)
        wait_until_ns = deadline_ns if wait_s is None else min(deadline_ns, now_ns + int(wait_s * NS_PER_S))
        body = work.body(size_bytes)
        super().__init__(request_id, key, body, Codec.OIP, NO_JSON_LENGTH, now_ns, deadline_ns, wait_until_ns)
        self.work = work
        self.ends = 0
        self.ended_ns = 0
        self.outcome: Outcome = None
        self._on_end = on_end

    def ended(self, outcome: Outcome) -> None:
        self.ends += 1
        self.outcome = outcome
        self._on_end(self)

    @property
    def status(self) -> int:
        """Return what its caller read; 0 where nothing."""
        if isinstance(self.outcome, Reply):
            return self.outcome.head.status
        return self.outcome.status if isinstance(self.outcome, ServeError) else 0
