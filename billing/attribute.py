"""Attribution: who pays for each microsecond of one replica's life. Pure.

The law (DESIGN §6): life, from assignment to exit, is `cold | busy | idle | drain`; busy is `billed` (shares of
requests whose usage arrived) or `lost` (attempts that never answered: cancelled, dropped, killed with the replica).

Times come in as nanoseconds of one monotonic clock: CLOCK_MONOTONIC of the machine, which a local replica shares; a
driver whose replicas run elsewhere translates first. They go out as whole microseconds. The parts are laid end to end
in the order cold, billed, lost, drain, idle, and each border is floored: so every part is right to the microsecond and
all of them sum to the floored length of life, at any time. Request shares are differences of the same borders.

What a replica reports is a claim: user code runs beside the meter. Every claim is bounded by what the platform saw, its
own clock first, so that no claim can lengthen a life, shorten a bill or move time between lives; what had to be bounded
is marked (`LifeAccount.bounded`).
"""

from __future__ import annotations

from typing import NamedTuple

from serve.core.clock import NS_PER_US
from serve.core.frames import Usage


class Share(NamedTuple):
    """What one answered request pays for."""

    busy_us: int
    cold_us: int
    """The replica's cold start, borne by the first request it answers (rule `first_served`); 0 for all others."""


class Parts(NamedTuple):
    """A life so far, in µs. The five sum to its length."""

    cold_us: int
    billed_us: int
    lost_us: int
    idle_us: int
    drain_us: int

    @property
    def busy_us(self) -> int:
        return self.billed_us + self.lost_us

    @property
    def life_us(self) -> int:
        return sum(self)


class LifeAccount:
    """The account of one replica's life. Owned by the event loop of the writer that records this life.

    Calls may come late, but not after `exited`. Order: (`answered` | `busy_reported`)* between `ready` and `exited`,
    `drain` at any time. Whatever the figures, parts are never negative and always sum to life. `now_ns` is the
    platform's own clock: nothing that a replica reports can have happened later.
    """

    __slots__ = (
        "_assigned_ns",
        "_billed_ns",
        "_busy_drain_ns",
        "_busy_ns",
        "_cold_given",
        "_drain_ns",
        "_exit_ns",
        "_ready_ns",
        "_reported_ns",
        "_seen_ns",
        "bounded",
        "estimated",
    )

    def __init__(self, assigned_ns: int) -> None:
        self.estimated = False
        """The busy time up to the exit was not reported but deduced from what was inside."""
        self.bounded = False
        """The replica reported a figure that cannot be; it was bounded by what can."""
        self._assigned_ns = assigned_ns
        self._seen_ns = assigned_ns
        self._ready_ns: int | None = None
        self._drain_ns: int | None = None
        self._exit_ns: int | None = None
        self._reported_ns = assigned_ns
        self._busy_ns = 0
        self._busy_drain_ns = 0
        self._billed_ns = 0
        self._cold_given = False

    def ready(self, at_ns: int, now_ns: int) -> None:
        """The model is loaded (`events.Ready.at_ns`): cold ends. Only the first call counts."""
        if self._ready_ns is None:
            at_ns = self._possible(at_ns, now_ns)
            self._ready_ns = self._reported_ns = at_ns
            self._seen(at_ns)

    def answered(self, usage: Usage, now_ns: int) -> Share:
        """A request's usage arrived: answer or error, and even if its client has left. Return what it pays.

        After `exited` there is nothing left to share: the share is zero.
        """
        if self._exit_ns is not None:
            return Share(0, 0)
        if self._ready_ns is None:
            self.ready(usage.entered_ns, now_ns)
        self.busy_reported(usage.left_ns, usage.total_busy_ns, now_ns)
        cold_ns = self._cold_ns(self._seen_ns)
        before_us = (cold_ns + self._billed_ns) // NS_PER_US
        share_ns = usage.share_ns
        if not 0 <= share_ns <= self._busy_ns - self._billed_ns:
            self.bounded = True
            share_ns = max(0, min(share_ns, self._busy_ns - self._billed_ns))
        self._billed_ns += share_ns
        busy_us = (cold_ns + self._billed_ns) // NS_PER_US - before_us
        if self._cold_given:
            return Share(busy_us, 0)
        self._cold_given = True
        return Share(busy_us, cold_ns // NS_PER_US)

    def busy_reported(self, at_ns: int, total_busy_ns: int, now_ns: int) -> None:
        """The replica told its cumulative busy time (`Stats`, `Drained`): so work that never answered is seen too."""
        if self._exit_ns is not None or self._ready_ns is None:
            return
        at_ns = self._possible(at_ns, now_ns)
        self._seen(at_ns)
        # On the hot path: what is in bounds, as nearly all is, costs comparisons and no calls. So below and above.
        most_ns = at_ns - self._ready_ns if at_ns > self._ready_ns else 0
        if not self._busy_ns <= total_busy_ns <= most_ns:
            self.bounded = True
            total_busy_ns = min(total_busy_ns, most_ns)
        if total_busy_ns > self._busy_ns:
            self._add_busy(at_ns, total_busy_ns - self._busy_ns)
        if at_ns > self._reported_ns:
            self._reported_ns = at_ns

    def drain(self, at_ns: int) -> None:
        """The replica takes nothing new. What is still inside keeps it busy: busy wins over drain."""
        if self._drain_ns is None:
            self._drain_ns = max(at_ns, self._assigned_ns)
            self._seen(at_ns)

    def exited(self, at_ns: int, inside_since_ns: int | None = None) -> None:
        """The process is gone. `inside_since_ns`: when the oldest attempt that never answered was dispatched."""
        if self._exit_ns is not None:
            return
        self._seen(at_ns)
        start_ns = self._unreported_since(inside_since_ns)
        if self._seen_ns > start_ns:
            self._add_busy(self._seen_ns, self._seen_ns - start_ns)
            self.estimated = True
        self._exit_ns = self._seen_ns

    def until_ns(self, now_ns: int) -> int:
        """Return the instant up to which `parts(now_ns)` counts: the exit, or the latest instant known by then."""
        return self._exit_ns if self._exit_ns is not None else max(now_ns, self._seen_ns)

    def parts(self, now_ns: int, inside_since_ns: int | None = None) -> Parts:
        """Return the parts of life up to `now_ns` (up to the exit, once there was one).

        `inside_since_ns` as in `exited`: what is inside now counts as lost until it answers, so that a crash closes
        the life truthfully at its last checkpoint.
        """
        end_ns = self.until_ns(now_ns)
        busy_ns, busy_drain_ns = self._busy_ns, self._busy_drain_ns
        if self._exit_ns is None:
            start_ns = self._unreported_since(inside_since_ns)
            busy_ns += max(0, end_ns - start_ns)
            if self._drain_ns is not None:
                busy_drain_ns += max(0, end_ns - max(start_ns, self._drain_ns))
        life_ns = end_ns - self._assigned_ns
        cold_ns = self._cold_ns(end_ns)
        busy_end_ns = min(cold_ns + busy_ns, life_ns)
        drain_ns = 0
        if self._drain_ns is not None and self._ready_ns is not None:
            drain_ns = max(0, end_ns - max(self._drain_ns, self._ready_ns) - busy_drain_ns)
        drain_end_ns = min(busy_end_ns + drain_ns, life_ns)
        borders_us = [
            ns // NS_PER_US for ns in (cold_ns, cold_ns + self._billed_ns, busy_end_ns, drain_end_ns, life_ns)
        ]
        cold, billed, busy, drain, life = borders_us
        return Parts(cold, billed - cold, busy - billed, life - drain, drain - busy)

    def _cold_ns(self, end_ns: int) -> int:
        return (self._ready_ns if self._ready_ns is not None else end_ns) - self._assigned_ns

    def _unreported_since(self, inside_since_ns: int | None) -> int:
        """Return the start of the busy stretch nobody reported; the far future where there is none."""
        if inside_since_ns is None or self._ready_ns is None:
            return 1 << 63
        return max(inside_since_ns, self._reported_ns)

    def _add_busy(self, until_ns: int, busy_ns: int) -> None:
        # Between two reports nothing left with a usage, so what was busy is taken to be the end of the stretch.
        self._busy_ns += busy_ns
        if self._drain_ns is not None:
            self._busy_drain_ns += min(busy_ns, max(0, until_ns - self._drain_ns))

    def _possible(self, at_ns: int, now_ns: int) -> int:
        """Return a reported time, or the nearest one that can be: within this life, and not in the future."""
        if self._assigned_ns <= at_ns <= now_ns:
            return at_ns
        possible_ns = max(self._assigned_ns, min(at_ns, now_ns))
        if possible_ns != at_ns:
            self.bounded = True
        return possible_ns

    def _seen(self, at_ns: int) -> None:
        if at_ns > self._seen_ns:
            self._seen_ns = at_ns
