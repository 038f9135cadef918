"""`decide`: examples that read like the rules, and properties that must hold for every demand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.decide import Decision, Observed, ScalingState, Settings, decide
from serve.core.clock import NS_PER_S
from serve.core.scaling import Demand

S = NS_PER_S
T0 = 1000 * S
DEFAULTS = Settings(min=0, max=None, concurrency=1, target=0.7, idle_ns=60 * S, stable_ns=60 * S, panic_ns=6 * S)


def demand(in_flight: int = 0, pending: int = 0, **figures: int) -> Demand:
    given_figures = {"concurrency_ns": 0, "peak": in_flight + pending, "arrivals": 0, "turned_away": 0}
    given_figures["last_active_ns"] = T0
    return Demand(in_flight, pending, **(given_figures | figures))


def observed(what: Demand, *, ready: int = 0, starting: int = 0, busy: int | None = None, **more: Any) -> Observed:
    if busy is None:
        busy = min(ready, what.in_flight)
    return Observed(what, starting, ready, busy, **({"is_reachable": True} | more))


def steady(
    settings: Settings, concurrency: int, *, ready: int, seconds: float, state: ScalingState | None = None
) -> Decision:
    """Return the last decision of a revision that has had this concurrency for some seconds, read each half second."""
    state = state or ScalingState()
    decision: Decision | None = None
    for reading in range(int(seconds * 2) + 1):
        now_ns = T0 + reading * S // 2
        what = demand(
            in_flight=min(concurrency, ready * settings.concurrency),
            pending=max(0, concurrency - ready * settings.concurrency),
            concurrency_ns=concurrency * (now_ns - T0),
            peak=concurrency,
            last_active_ns=now_ns,
        )
        decision = decide(settings, observed(what, ready=ready), state, now_ns)
        state = decision.state
    assert decision is not None
    return decision


# Examples ------------------------------------------------------------------------------------------------------------


def test_requests_at_zero_order_one_replica_at_once() -> None:
    decision = decide(DEFAULTS, observed(demand(pending=2, arrivals=2)), ScalingState(), T0)
    assert (decision.replicas, decision.reason) == (1, "2 requests wait and no replica runs: 0 → 1")


def test_arrival_that_could_not_wait_orders_one_too() -> None:
    decision = decide(DEFAULTS, observed(demand(arrivals=5, turned_away=2)), ScalingState(turned_away=1), T0)
    assert decision.replicas == 1
    assert decision.reason == "1 request came and could not wait, and no replica runs: 0 → 1"


def test_nobody_at_zero_changes_nothing_and_is_never_looked_at_again() -> None:
    decision = decide(DEFAULTS, observed(demand(arrivals=4, turned_away=4)), ScalingState(turned_away=4), T0)
    assert (decision.replicas, decision.wake_at_ns) == (0, None)


def test_requests_answered_before_the_last_replica_was_lost_order_none() -> None:
    running = decide(DEFAULTS, observed(demand(in_flight=1, arrivals=1), ready=1), ScalingState(), T0)
    lost = decide(DEFAULTS, observed(demand(arrivals=385, peak=1)), running.state, T0 + S)
    assert (lost.replicas, lost.wake_at_ns) == (0, None)


def test_first_reading_of_running_replicas_is_no_data_and_changes_nothing() -> None:
    decision = decide(DEFAULTS, observed(demand(in_flight=3, pending=50), ready=3), ScalingState(), T0)
    assert decision.replicas == 3
    assert "too early for an average" in decision.reason


def test_steady_load_is_divided_by_target() -> None:
    settings = dataclasses.replace(DEFAULTS, concurrency=10)
    decision = steady(settings, 21, ready=2, seconds=60)
    assert decision.replicas == 3
    assert decision.reason == "21.00 requests at once over the last 60 s, 7 aimed at per replica: 2 → 3"


def test_twice_what_is_ready_is_a_panic_and_more_is_wanted_at_once() -> None:
    settings = dataclasses.replace(DEFAULTS, concurrency=10)
    calm = steady(settings, 5, ready=1, seconds=60)
    assert not calm.state.is_panic
    now_ns = T0 + 63 * S
    burst = demand(in_flight=10, pending=90, concurrency_ns=5 * 60 * S + 100 * 3 * S, peak=100, last_active_ns=now_ns)
    decision = decide(settings, observed(burst, ready=1), calm.state, now_ns)
    assert decision.state.is_panic
    assert decision.replicas == 8, "(3 s at 100 and 3 s at 5) / 6 s / 7 per replica"
    assert decision.reason == (
        "52.50 requests at once over the last 6 s, 7 aimed at per replica (a burst: nothing is taken away for now): "
        "1 → 8"
    )


def test_panic_remembers_its_highest_wish_until_a_stable_window_without_a_burst() -> None:
    state = ScalingState(panic_until_ns=T0 + 60 * S, panic_replicas=5)
    decision = steady(DEFAULTS, 1, ready=3, seconds=59, state=state)
    assert decision.replicas == 5
    decision = steady(DEFAULTS, 1, ready=3, seconds=61, state=state)
    assert decision.replicas == 1
    assert not decision.state.is_panic


def test_panic_takes_nothing_away_even_of_what_it_did_not_ask_for() -> None:
    state = ScalingState(panic_until_ns=T0 + 60 * S, panic_replicas=2)
    assert steady(DEFAULTS, 1, ready=5, seconds=10, state=state).replicas == 5


def test_at_most_half_goes_at_a_time() -> None:
    settings = dataclasses.replace(DEFAULTS, concurrency=100)
    decision = steady(settings, 1, ready=9, seconds=30)
    assert decision.replicas == 4
    assert "at most half go at a time" in decision.reason


def test_replicas_that_run_requests_stay_whatever_the_average_says() -> None:
    settings = dataclasses.replace(DEFAULTS, concurrency=100)
    state = steady(settings, 3, ready=5, seconds=30).state
    what = demand(in_flight=3, concurrency_ns=90 * S, last_active_ns=T0 + 30 * S)
    decision = decide(settings, observed(what, ready=5, busy=3), state, T0 + 30 * S)
    assert decision.replicas == 3
    assert "3 run requests and 0 are starting" in decision.reason


def test_one_caller_back_to_back_needs_one_replica_although_the_target_says_two() -> None:
    assert steady(DEFAULTS, 1, ready=1, seconds=60).replicas == 1


def test_growth_is_bounded_by_max_and_says_so() -> None:
    settings = dataclasses.replace(DEFAULTS, max=4)
    decision = steady(settings, 50, ready=1, seconds=5)
    assert decision.replicas == 4
    assert "max is 4: 1 → 4" in decision.reason


def test_idle_time_counts_from_the_last_activity_to_the_nanosecond() -> None:
    what = demand(last_active_ns=T0)
    before = decide(DEFAULTS, observed(what, ready=1), ScalingState(), T0 + 60 * S - 1)
    assert (before.replicas, before.wake_at_ns) == (1, T0 + 60 * S)
    after = decide(DEFAULTS, observed(what, ready=1), ScalingState(), T0 + 60 * S)
    assert (after.replicas, after.reason) == (0, "no request for 60 s (idle): 1 → 0")
    assert after.wake_at_ns is None


def test_end_of_idle_time_ends_a_panic_and_takes_all_replicas() -> None:
    state = ScalingState(panic_until_ns=T0 + 1000 * S, panic_replicas=9)
    settings = dataclasses.replace(DEFAULTS, idle_ns=5 * S)
    decision = decide(settings, observed(demand(), ready=9), state, T0 + 5 * S)
    assert decision.replicas == 0
    assert not decision.state.is_panic


def test_idle_time_of_a_replica_nobody_has_asked_yet_counts_from_when_it_was_kept() -> None:
    what = demand(last_active_ns=0)
    decision = decide(DEFAULTS, observed(what, ready=1, kept_ns=T0), ScalingState(), T0 + 59 * S)
    assert (decision.replicas, decision.wake_at_ns) == (1, T0 + 60 * S)


def test_unreachable_revision_ignores_min_but_not_its_requests() -> None:
    settings = dataclasses.replace(DEFAULTS, min=3)
    none_left = decide(settings, observed(demand(), ready=3, is_reachable=False), ScalingState(), T0)
    assert (none_left.replicas, none_left.wake_at_ns) == (0, None)
    one_left = decide(settings, observed(demand(in_flight=1), ready=3, is_reachable=False), ScalingState(), T0)
    assert one_left.replicas >= 1


def test_held_revision_keeps_one_replica_even_if_nobody_can_reach_it() -> None:
    held = observed(demand(), is_reachable=False, is_held=True)
    decision = decide(DEFAULTS, held, ScalingState(), T0)
    assert (decision.replicas, decision.reason) == (1, "publishing needs one: 0 → 1")
    assert decide(DEFAULTS, dataclasses.replace(held, ready=1), ScalingState(), T0 + 999 * S).replicas == 1


def test_nothing_grows_while_nobody_asks() -> None:
    settings = dataclasses.replace(DEFAULTS, stable_ns=60 * S)
    state = steady(settings, 8, ready=8, seconds=30).state
    quiet = demand(concurrency_ns=8 * 30 * S, peak=0, last_active_ns=T0 + 30 * S)
    decision = decide(settings, observed(quiet, ready=2), dataclasses.replace(state, panic_until_ns=0), T0 + 31 * S)
    assert decision.replicas == 2


def test_burst_that_came_and_went_between_two_readings_still_counts() -> None:
    first = decide(DEFAULTS, observed(demand(in_flight=1), ready=1), ScalingState(), T0)
    gone = demand(concurrency_ns=20 * S, peak=20, last_active_ns=T0 + S)
    decision = decide(DEFAULTS, observed(gone, ready=1), first.state, T0 + 2 * S)
    assert decision.replicas == 15, "20 request-seconds in 2 s are 10 at once, 0.7 per replica"


# Properties ----------------------------------------------------------------------------------------------------------

settings_strategy = st.builds(
    lambda minimum, more, concurrency, target, idle, panic, longer: Settings(
        min=minimum,
        max=None if more is None else max(1, minimum + more),
        concurrency=concurrency,
        target=target,
        idle_ns=idle,
        stable_ns=panic + longer,
        panic_ns=panic,
    ),
    st.integers(0, 5),
    st.none() | st.integers(0, 20),
    st.integers(1, 64),
    st.floats(0.1, 1.0),
    st.integers(0, 120 * S),
    st.integers(S // 10, 10 * S),
    st.integers(0, 60 * S),
)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, Observed]]:
    """Readings of a revision at irregular times, honest among themselves."""
    now_ns, integral_ns, arrivals, turned_away, last_active_ns = T0, 0, 0, 0, 0
    readings: list[tuple[int, Observed]] = []
    for _ in range(draw(st.integers(1, 12))):
        elapsed_ns = draw(st.integers(1, 30 * S))
        now_ns += elapsed_ns
        load = draw(st.integers(0, 40) | st.just(0))
        peak = load + draw(st.integers(0, 40))
        integral_ns += draw(st.integers(0, peak)) * elapsed_ns
        came = draw(st.integers(0, 50)) if peak else 0
        arrivals, turned_away = arrivals + came, turned_away + draw(st.integers(0, came))
        if load:
            last_active_ns = now_ns
        elif peak:
            last_active_ns = now_ns - draw(st.integers(0, elapsed_ns))
        in_flight = draw(st.integers(0, load))
        ready = draw(st.integers(1 if in_flight else 0, 10))
        what = Demand(in_flight, load - in_flight, integral_ns, peak, arrivals, turned_away, last_active_ns)
        busy = draw(st.integers(1, min(ready, in_flight))) if in_flight else 0
        seen = Observed(what, draw(st.integers(0, 4)), ready, busy, draw(st.booleans()), draw(st.booleans()))
        readings.append((now_ns, seen))
    return readings


def follow(settings: Settings, history: list[tuple[int, Observed]]) -> list[Decision]:
    state, decisions = ScalingState(), []
    for now_ns, seen in history:
        decisions.append(decide(settings, seen, state, now_ns))
        state = decisions[-1].state
    return decisions


@given(settings_strategy, histories())
def test_bounds_are_never_exceeded_and_every_reason_is_a_sentence_with_its_figures(
    settings: Settings, history: list[tuple[int, Observed]]
) -> None:
    for decision, (_, seen) in zip(follow(settings, history), history, strict=True):
        assert decision.replicas >= 0
        if settings.max is not None:
            assert decision.replicas <= settings.max
        if seen.is_reachable:
            assert decision.replicas >= settings.min
        if seen.load:
            assert decision.replicas >= 1, "who asks is answered"
        assert decision.replicas <= max(1, seen.live) * 1000
        assert str(decision.replicas) in decision.reason


@given(settings_strategy, histories())
def test_next_look_is_always_later_than_now(settings: Settings, history: list[tuple[int, Observed]]) -> None:
    for decision, (now_ns, _) in zip(follow(settings, history), history, strict=True):
        assert decision.wake_at_ns is None or decision.wake_at_ns > now_ns


@given(settings_strategy, histories())
def test_busy_replicas_are_never_given_up_unless_max_forbids_them(
    settings: Settings, history: list[tuple[int, Observed]]
) -> None:
    for decision, (_, seen) in zip(follow(settings, history), history, strict=True):
        if settings.max is None:
            assert decision.replicas >= seen.busy


@given(settings_strategy, histories())
def test_panic_never_shrinks_while_anyone_asks(settings: Settings, history: list[tuple[int, Observed]]) -> None:
    for decision, (_, seen) in zip(follow(settings, history), history, strict=True):
        if decision.state.is_panic and seen.load:
            assert decision.replicas >= min(seen.live, settings.max or seen.live)


@given(settings_strategy, histories())
def test_without_demand_it_reaches_its_minimum_by_its_own_wake_ups_and_then_sleeps_for_ever(
    settings: Settings, history: list[tuple[int, Observed]]
) -> None:
    state = follow(settings, history)[-1].state
    now_ns, seen = history[-1]
    what = dataclasses.replace(seen.demand, in_flight=0, pending=0, peak=0)
    ready, arrived_ns = seen.live, now_ns
    for _ in range(2000):
        rest = Observed(what, 0, ready, 0, seen.is_reachable)
        decision = decide(settings, rest, state, now_ns)
        assert decision.replicas <= max(ready, settings.min)
        state, ready = decision.state, decision.replicas
        if decision.wake_at_ns is None:
            break
        now_ns = decision.wake_at_ns
    assert decision.wake_at_ns is None
    assert ready == (settings.min if seen.is_reachable else 0)
    assert now_ns <= max(arrived_ns, what.last_active_ns + settings.idle_ns) + 20_000_000


@given(settings_strategy, histories(), st.integers(0, 20), st.integers(0, 30 * S), st.integers(0, 20))
def test_more_demand_never_means_fewer_replicas(
    settings: Settings, history: list[tuple[int, Observed]], more_pending: int, more_ns: int, more_peak: int
) -> None:
    state = follow(settings, history[:-1])[-1].state if len(history) > 1 else ScalingState()
    now_ns, seen = history[-1]
    what = seen.demand
    pending = what.pending + more_pending
    higher = dataclasses.replace(
        what,
        pending=pending,
        concurrency_ns=what.concurrency_ns + more_ns,
        peak=max(what.peak, what.in_flight + pending) + more_peak,
        arrivals=what.arrivals + more_pending,
        last_active_ns=now_ns if what.in_flight + pending else what.last_active_ns,
    )
    low = decide(settings, seen, state, now_ns)
    high = decide(settings, dataclasses.replace(seen, demand=higher), state, now_ns)
    assert high.replicas >= low.replicas


@pytest.mark.parametrize("idle_ns", [0, 1, S // 100, 60 * S])
def test_wake_ups_of_a_busy_revision_are_bounded_whatever_its_idle_time(idle_ns: int) -> None:
    settings = dataclasses.replace(DEFAULTS, idle_ns=idle_ns)
    decision = steady(settings, 1, ready=1, seconds=5)
    assert decision.wake_at_ns is not None
    assert decision.wake_at_ns - (T0 + 5 * S) >= 20_000_000
