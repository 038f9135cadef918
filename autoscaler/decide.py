"""How many replicas a revision wants, why, and when to ask again. Pure: takes `now`, keeps no clock.

The shape is Knative's pod autoscaler: concurrency per replica over a stable and a panic window, panic never shrinks,
growth and shrinkage limited by a rate. Changed where its users were hurt:

- Demand is an integral and a latched peak, never a sample: a burst that ends between two readings counts in full.
- From zero, the first request orders a replica at once. No tick, no window.
- Never more replicas than requests were ever there at one time: one caller that sends back to back fills a replica of
  concurrency 1, but a second replica would not serve it any faster.
- Nothing grows while nobody asks.
- Idle time is measured from the last activity, and when it has passed it ends everything else, panic included.
- Only replicas that run nothing are taken away.
- The next reading is an instant, not a period: a revision at rest is never looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from autoscaler.windows import DemandWindow, Sample, bucket_ns
from serve.core.clock import NS_PER_MS, NS_PER_S
from serve.core.revision import Revision
from serve.core.scaling import Demand

PANIC_THRESHOLD = 2.0
MAX_SCALE_UP_RATE = 1000
MAX_SCALE_DOWN_RATE = 2

_BUSY_READINGS = 6
"""Readings per panic window while requests run."""
_WAITING_READINGS = 24
"""Readings per panic window while requests wait."""
_SHORTEST_READING_NS = 20 * NS_PER_MS


@dataclass(frozen=True, slots=True)
class Settings:
    """What the deployment's spec says about scaling."""

    min: int
    max: int | None
    concurrency: int
    """Most requests inside one replica."""
    target: float
    """Share of `concurrency` aimed at."""
    idle_ns: int
    stable_ns: int
    panic_ns: int


def settings_of(revision: Revision) -> Settings:
    spec = revision.spec
    return Settings(
        min=spec.min,
        max=spec.max,
        concurrency=revision.concurrency,
        target=spec.target,
        idle_ns=round(spec.idle * NS_PER_S),
        stable_ns=round(spec.stable_window * NS_PER_S),
        panic_ns=round(spec.panic_window * NS_PER_S),
    )


@dataclass(frozen=True, slots=True)
class Observed:
    """One reading of a revision. Replicas that are on their way out are not counted."""

    demand: Demand
    starting: int
    """Ordered and not yet ready."""
    ready: int
    busy: int
    """Ready ones with a request inside."""
    is_reachable: bool
    """Calls are routed to it. Otherwise it is kept only while it has requests."""
    is_held: bool = False
    """Publishing needs one replica, whatever the demand."""
    kept_ns: int = 0
    """Monotonic: idle time counts from here if nothing was active since."""

    @property
    def live(self) -> int:
        return self.starting + self.ready

    @property
    def load(self) -> int:
        """Requests there now."""
        return self.demand.in_flight + self.demand.pending


@dataclass(frozen=True, slots=True)
class ScalingState:
    """What one decision leaves to the next."""

    window: DemandWindow = field(default_factory=DemandWindow)
    turned_away: int = 0
    """Requests turned away until the last reading."""
    panic_until_ns: int = 0
    """0: not in panic."""
    panic_replicas: int = 0
    """Most replicas wanted in this panic."""

    @property
    def is_panic(self) -> bool:
        return self.panic_until_ns > 0


@dataclass(frozen=True, slots=True)
class Decision:
    replicas: int
    reason: str
    """A sentence with the figures that decided, for `serve explain`."""
    state: ScalingState
    wake_at_ns: int | None
    """The next instant at which the answer may change without an event. None: never. Always after `now`."""


def decide(settings: Settings, observed: Observed, state: ScalingState, now_ns: int) -> Decision:
    """Return how many replicas there should be. Readings must come in order of time."""
    # Not all arrivals: most were answered since, by replicas that may be gone, and need none.
    turned_away = max(0, observed.demand.turned_away - state.turned_away)
    if observed.load == 0 and not (turned_away and observed.live == 0):
        resting = _at_rest(settings, observed, now_ns)
        if resting is not None:
            replicas, reason = resting
            # Nothing of the past matters any more, and ten thousand idle revisions should weigh nothing.
            return Decision(replicas, reason, ScalingState(turned_away=observed.demand.turned_away), None)
    window = state.window.add(
        Sample(now_ns, observed.demand.concurrency_ns, max(observed.demand.peak, observed.load)),
        settings.stable_ns,
        bucket_ns(settings.panic_ns),
    )
    return _by_load(settings, observed, state, window, turned_away, now_ns)


def _floor(settings: Settings, observed: Observed) -> int:
    """Return how many replicas are kept without any demand."""
    kept = settings.min if observed.is_reachable else 0
    return max(kept, 1) if observed.is_held else kept


def _at_rest(settings: Settings, observed: Observed, now_ns: int) -> tuple[int, str] | None:
    """Return replicas and reason if nobody asks and nothing can change that but an event; else None."""
    live, floor = observed.live, _floor(settings, observed)
    change = _change(live, floor)
    if live < floor:
        because = f"min is {settings.min}" if observed.is_reachable and settings.min else "publishing needs one"
        return floor, f"{because}: {change}"
    if live == floor:
        return floor, f"nobody asks and {_count(floor, 'replica is', 'replicas are')} kept: {change}"
    if not observed.is_reachable:
        return floor, f"no calls are routed to this revision and none are left: {change}"
    if now_ns >= _idle_at_ns(settings, observed):
        return floor, f"no request for {_seconds(settings.idle_ns)} (idle): {change}"
    return None


def _idle_at_ns(settings: Settings, observed: Observed) -> int:
    return max(observed.demand.last_active_ns, observed.kept_ns) + settings.idle_ns


def _by_load(
    settings: Settings, observed: Observed, state: ScalingState, window: DemandWindow, turned_away: int, now_ns: int
) -> Decision:
    live = observed.live
    wanted, reason, panic_until_ns, panic_replicas = _by_windows(settings, observed, state, window, now_ns)
    if live == 0 and wanted <= 1:
        reason = _first_request(observed, turned_away)
    if observed.load == 0 and observed.demand.peak == 0 and live and wanted > live:
        wanted, reason = live, "nobody asks now"
    # What must not go: something to answer with, what is running or on its way, and half of the rest.
    kept = max(1, _floor(settings, observed), observed.busy + observed.starting, live // MAX_SCALE_DOWN_RATE)
    if wanted < kept:
        reason += f"; {kept} stay, as {_why_kept(settings, observed, kept)}"
        wanted = kept
    wanted = min(wanted, max(1, live) * MAX_SCALE_UP_RATE)
    if settings.max is not None and wanted > settings.max:
        wanted = settings.max
        reason += f"; max is {settings.max}"
    next_state = ScalingState(window, observed.demand.turned_away, panic_until_ns, panic_replicas)
    wake_at_ns = _wake_at_ns(settings, observed, next_state, now_ns)
    return Decision(wanted, f"{reason}: {_change(live, wanted)}", next_state, wake_at_ns)


def _by_windows(
    settings: Settings, observed: Observed, state: ScalingState, window: DemandWindow, now_ns: int
) -> tuple[int, str, int, int]:
    """Return (replicas, reason, panic until, most replicas in panic) from the averages alone."""
    stable, panic = window.average(settings.stable_ns), window.average(settings.panic_ns)
    per_replica = settings.concurrency * settings.target
    at_once = window.peak(settings.stable_ns)
    if stable is None or panic is None:
        return max(1, observed.live), _now(observed), state.panic_until_ns, state.panic_replicas
    stable_wanted = min(_replicas_for(stable, per_replica), at_once)
    panic_wanted = min(_replicas_for(panic, per_replica), at_once)
    panic_until_ns, panic_replicas = state.panic_until_ns, state.panic_replicas
    if panic_wanted / max(1, observed.ready) >= PANIC_THRESHOLD:
        panic_until_ns = now_ns + settings.stable_ns
    elif now_ns >= panic_until_ns:
        panic_until_ns = panic_replicas = 0
    if not panic_until_ns:
        return stable_wanted, _load(stable, window.covered_ns(settings.stable_ns), per_replica), 0, 0
    wanted = max(stable_wanted, panic_wanted, panic_replicas, observed.live)
    reason = (
        _load(panic, window.covered_ns(settings.panic_ns), per_replica) + " (a burst: nothing is taken away for now)"
    )
    # Only what was asked for in this panic is latched; what happens to be live is not a wish.
    return wanted, reason, panic_until_ns, max(stable_wanted, panic_wanted, panic_replicas)


def _replicas_for(concurrency: float, per_replica: float) -> int:
    """Round up, but not for the last bits of a float: 0.7 / 0.7 is one replica."""
    return math.ceil(concurrency / per_replica - 1e-9)


def _wake_at_ns(settings: Settings, observed: Observed, state: ScalingState, now_ns: int) -> int | None:
    if observed.load or observed.live == 0:
        readings = _WAITING_READINGS if observed.demand.pending else _BUSY_READINGS
        # A reading at least every idle time, so that the end of activity is known before idle time has passed.
        return now_ns + max(_SHORTEST_READING_NS, min(settings.panic_ns // readings, settings.idle_ns))
    floor = _floor(settings, observed)
    idle_at_ns = _idle_at_ns(settings, observed)
    if observed.live <= max(1, floor):
        return idle_at_ns if observed.live > floor else None
    if state.is_panic:
        return min(state.panic_until_ns, idle_at_ns)
    return min(now_ns + max(_SHORTEST_READING_NS, settings.panic_ns // _BUSY_READINGS), idle_at_ns)


# Sentences -----------------------------------------------------------------------------------------------------------


def _first_request(observed: Observed, turned_away: int) -> str:
    if observed.demand.pending:
        return f"{_count(observed.demand.pending, 'request waits', 'requests wait')} and no replica runs"
    return f"{_count(turned_away, 'request', 'requests')} came and could not wait, and no replica runs"


def _now(observed: Observed) -> str:
    demand = observed.demand
    waiting = _count(demand.pending, "request waits", "requests wait")
    return f"{waiting} and {_count(demand.in_flight, 'runs', 'run')}; too early for an average"


def _load(concurrency: float, window_ns: int, per_replica: float) -> str:
    return (
        f"{concurrency:.2f} requests at once over the last {_seconds(window_ns)}, {per_replica:g} aimed at per replica"
    )


def _why_kept(settings: Settings, observed: Observed, kept: int) -> str:
    if kept == observed.busy + observed.starting:
        return f"{observed.busy} run requests and {observed.starting} are starting"
    if kept == observed.live // MAX_SCALE_DOWN_RATE and kept > 1:
        return "at most half go at a time"
    if kept == _floor(settings, observed):
        return f"min is {settings.min}" if settings.min == kept else "publishing needs one"
    return "the last one goes only when it was idle long enough"


def _change(before: int, after: int) -> str:
    return f"{before} → {after}" if before != after else f"stays at {after}"


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _seconds(duration_ns: int) -> str:
    return f"{duration_ns / NS_PER_S:.3g} s"
