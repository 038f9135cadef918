"""Observe, decide, act: the one writer of every fleet."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from autoscaler.actuator import Actuator, End
from autoscaler.admission import Admission
from autoscaler.capacity import Admitted, TooLarge
from autoscaler.decide import Decision, Observed, decide
from autoscaler.fleet import Fleet
from autoscaler.history import DecisionLog
from autoscaler.replica import Replica
from autoscaler.surroundings import Surroundings
from autoscaler.timers import Timers
from autoscaler.warm import NO_MEMORY, WarmReport, publish_error
from serve.core.clock import NS_PER_MS, NS_PER_S
from serve.core.errors import ModelFailed, NoCapacity, PublishError, ServeError
from serve.core.events import ExitReason
from serve.core.ids import RevisionKey

if TYPE_CHECKING:
    from collections.abc import Callable

FAILURES_UNTIL_FAILED = 3
DECISION_GAP_NS = 20 * NS_PER_MS
"""A storm of pokes costs one decision per gap. A revision without any replica never waits for it."""

ABANDONED_LOOK_NS = NS_PER_S
"""How often to look at a replica that should go and still runs what its callers left: no event need tell its end."""
LINE_LOOK_NS = NS_PER_S
"""How often who waits for memory looks whether its turn has come, though nobody asks for it: `min` does."""


class Scaler:
    """All fleets. Owned by the loop; every method returns at once. Implements the actuator's Follower.

    A fleet is looked at when it is poked, when something happens to a replica of it, and at the instant its last
    decision named. One at rest has no timer.
    """

    def __init__(self, around: Surroundings, *, on_all_gone: Callable[[], None]) -> None:
        self.fleets: dict[RevisionKey, Fleet] = {}
        self.decisions = DecisionLog(around.clock)
        self.timers = Timers(around.clock)
        self.is_closing = False
        self.actuator = Actuator(around, self.timers, self)
        self._admission = Admission(around, self.actuator, self.decisions)
        self._pool = around.pool
        self._clock = around.clock
        self._on_all_gone = on_all_gone

    # Observe ---------------------------------------------------------------------------------------------------------

    def poke(self, fleet: Fleet) -> None:
        """Look at the fleet in this turn of the loop, or soon if it was looked at just now and has replicas."""
        now_ns = self._clock.monotonic_ns()
        is_backing_off = now_ns < fleet.backoff.until_ns
        if is_backing_off and fleet.failure is not None and not fleet.live:
            self._refuse(fleet, self._failed_error(fleet, now_ns))
            return
        is_helpless = not fleet.live and not is_backing_off and fleet.key not in self._admission.waiting
        if is_helpless or fleet.decided_ns is None or now_ns - fleet.decided_ns >= DECISION_GAP_NS:
            self.look(fleet)
        else:
            self.timers.advance(fleet.key, fleet.decided_ns + DECISION_GAP_NS, functools.partial(self.look, fleet))

    def look_at_waiting(self) -> None:
        """Decide about those that wait for memory, in the order in which they came."""
        for key in tuple(self._admission.waiting):
            self.look(self.fleets[key])

    # Decide and act --------------------------------------------------------------------------------------------------

    def look(self, fleet: Fleet) -> None:
        """Read the fleet's demand, decide, act, and note when to look again."""
        if self.is_closing or fleet.removed is not None:
            return
        now_ns = self._clock.monotonic_ns()
        observed = fleet.observe(self._pool, now_ns, self._admission.age)
        decision = decide(fleet.settings, observed, fleet.state, now_ns)
        fleet.state, fleet.decided_ns = decision.state, now_ns
        wake_at_ns = decision.wake_at_ns
        if decision.replicas <= observed.live:
            self._admission.leave_line(fleet)
            self._shrink(fleet, observed, decision)
            if wake_at_ns is None and fleet.live > decision.replicas:
                wake_at_ns = now_ns + ABANDONED_LOOK_NS
        elif now_ns < fleet.backoff.until_ns:
            self._admission.leave_line(fleet)
            wake_at_ns = fleet.backoff.until_ns
        else:
            self._grow(fleet, observed, decision)
            if wake_at_ns is None and fleet.key in self._admission.waiting:
                wake_at_ns = now_ns + LINE_LOOK_NS
        if wake_at_ns is None:
            self.timers.cancel(fleet.key)
        else:
            self.timers.set(fleet.key, wake_at_ns, functools.partial(self.look, fleet))

    def _grow(self, fleet: Fleet, observed: Observed, decision: Decision) -> None:
        live = observed.live
        reason = decision.reason
        while live < decision.replicas:
            crowded = self._admission.crowded(fleet)
            if crowded is not None:
                reason += f"; {crowded}"
                self._admission.leave_line(fleet)
                break
            verdict = self._admission.try_for(fleet)
            if isinstance(verdict, TooLarge):
                self._end_warm(fleet, PublishError(verdict.reason))
                self._refuse(fleet, NoCapacity(verdict.reason))
            if not isinstance(verdict, Admitted):
                break
            self.actuator.start(fleet)
            live += 1
        if live > observed.live:
            self.decisions.add(fleet.key, observed.live, live, reason)
        if live == decision.replicas:
            self._admission.leave_line(fleet)

    def _shrink(self, fleet: Fleet, observed: Observed, decision: Decision) -> None:
        """Take away what runs nothing. One still starting goes first, but only if nobody is left to want it."""
        excess = observed.live - decision.replicas
        if not excess:
            return
        is_at_rest = decision.wake_at_ns is None
        starting = fleet.starting()[::-1][:excess] if is_at_rest else []
        for replica in starting:
            self.actuator.stop(replica)
        for replica in fleet.idle(self._pool)[::-1][: excess - len(starting)]:
            self.actuator.retire(replica)
        if fleet.live < observed.live:
            self.decisions.add(fleet.key, observed.live, fleet.live, decision.reason)

    # What became of replicas (the actuator's Follower) ---------------------------------------------------------------

    def became_ready(self, fleet: Fleet, replica: Replica) -> None:
        fleet.backoff.became_ready()
        fleet.failure = None
        refusal = self._admission.refusal_of(fleet)
        if refusal is not None:
            self._end_warm(fleet, PublishError(refusal))
        for waiter in fleet.warm_waiters:
            if not waiter.done():
                waiter.set_result(WarmReport.of(replica))
        self.look(fleet)

    def ended(self, fleet: Fleet, replica: Replica, end: End) -> None:
        self._book(fleet, replica, end)
        if end.exited is not None:
            self._pool.replica_gone(end.exited)
        if not fleet.replicas:
            fleet.uses = 0
        if fleet.removed is not None and not fleet.replicas:
            self._forget(fleet)
        if not self.actuator.replicas:
            self._on_all_gone()
        now_ns = self._clock.monotonic_ns()
        if fleet.failure is not None and not fleet.live and now_ns < fleet.backoff.until_ns:
            self._refuse(fleet, self._failed_error(fleet, now_ns))
        self.look_at_waiting()
        self.look(fleet)

    def memory_grew(self, fleet: Fleet) -> None:
        self._admission.memory_grew(fleet)

    def _book(self, fleet: Fleet, replica: Replica, end: End) -> None:
        """Draw the conclusions from an end that no decision ordered."""
        if end.reason is ExitReason.OUT_OF_MEMORY or (replica.failed is not None and replica.failed.code == NO_MEMORY):
            peak_bytes = end.exited.peak_rss_bytes if end.exited is not None else None
            given = self._admission.ran_out(fleet, replica, peak_bytes or 0)
            self.decisions.add(fleet.key, fleet.live, fleet.live, f"{replica.id} ran out of memory: {given}")
        if replica.ready is None and replica.stop_reason in {None, ExitReason.START_TIMEOUT}:
            self._start_failed(fleet, replica, end)
        elif replica.stop_reason is None:
            if end.exited is None or not end.exited.is_killed_from_outside:
                now_ns = self._clock.monotonic_ns()
                fleet.backoff.crashed(now_ns - replica.ready_ns, now_ns)
            self.decisions.add(fleet.key, fleet.live + 1, fleet.live, end.message)
        elif replica.stop_reason is ExitReason.EXECUTION_TIMEOUT:
            self.decisions.add(fleet.key, fleet.live + 1, fleet.live, end.message)

    def _start_failed(self, fleet: Fleet, replica: Replica, end: End) -> None:
        live = fleet.live
        message = replica.failed.message if replica.failed is not None else end.message
        reason = f"{replica.id} did not become ready ({message})"
        if fleet.warm_waiters:
            # Whoever publishes hears of it and decides what next: no further attempt, and no pause for their next one.
            self._end_warm(fleet, publish_error(replica.failed, end.message))
            self.decisions.add(fleet.key, live + 1, live, reason)
            return
        now_ns = self._clock.monotonic_ns()
        is_killed = end.exited is not None and end.exited.is_killed_from_outside
        if is_killed and fleet.backoff.excuses_kill(now_ns):
            self.decisions.add(fleet.key, live + 1, live, reason)
            return
        fleet.backoff.start_failed(now_ns)
        if fleet.backoff.failures >= FAILURES_UNTIL_FAILED and not live:
            fleet.failure = message
        pause_s = (fleet.backoff.until_ns - now_ns) / NS_PER_S
        nth = f"failure {fleet.backoff.failures} in a row, nothing is started for {pause_s:.1f} s"
        self.decisions.add(fleet.key, live + 1, live, f"{reason}; {nth}")

    # Ends ------------------------------------------------------------------------------------------------------------

    def empty(self, fleet: Fleet, why: str) -> None:
        """Take a fleet to zero for good; one that is being removed is forgotten then."""
        self._admission.leave_line(fleet)
        self.timers.cancel(fleet.key)
        self._end_warm(fleet, PublishError(f"{fleet.key} was not published: {why}"))
        before = fleet.live
        for replica in [replica for replica in fleet.replicas.values() if replica.stop_reason is None]:
            if replica.ready is None:
                self.actuator.stop(replica)
            else:
                self.actuator.retire(replica)
        if before:
            self.decisions.add(fleet.key, before, 0, f"{why}: {before} → 0")
        if fleet.removed is not None and not fleet.replicas:
            self._forget(fleet)

    def _forget(self, fleet: Fleet) -> None:
        assert fleet.removed is not None
        self.fleets.pop(fleet.key, None)
        if not any(key.name == fleet.key.name for key in self.fleets):
            self.decisions.forget(fleet.key.name)
            self.actuator.forget(fleet.key.name)
        if not fleet.removed.done():
            fleet.removed.set_result(None)

    def _refuse(self, fleet: Fleet, error: ServeError) -> None:
        """Answer what waits, so that only what comes from now on is a reason to start anything."""
        self._pool.fail_pending(fleet.key, error)
        fleet.forget_demand(fleet.read(self._pool, self._clock.monotonic_ns(), self._admission.age))

    def _failed_error(self, fleet: Fleet, now_ns: int) -> ModelFailed:
        pause_s = (fleet.backoff.until_ns - now_ns) / NS_PER_S
        return ModelFailed(
            f"'{fleet.key.name}' does not start: {fleet.failure} (next try in {pause_s:.1f} s at the earliest; see "
            f"`serve logs {fleet.key.name}`, or deploy it again)",
            retry_after_s=pause_s + (fleet.cold_starts.expected_s() or 0.0),
        )

    def _end_warm(self, fleet: Fleet, error: PublishError) -> None:
        if fleet.warm_waiters:
            fleet.is_held = False
        for waiter in fleet.warm_waiters:
            if not waiter.done():
                waiter.set_exception(error)
        fleet.warm_waiters.clear()
