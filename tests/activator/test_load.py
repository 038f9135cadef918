"""What a gate tells the autoscaler of its load is what a patient observer would have counted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from activator.load import Load

STEPS = st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["came", "ended", "turned away", "read"])), max_size=60)


@given(STEPS)
def test_integral_peak_and_arrivals_are_those_of_somebody_who_looks_all_the_time(steps: list[tuple[int, str]]) -> None:
    load = Load()
    now_ns, integral_ns, concurrency, peak, arrivals, turned_away = 1000, 0, 0, 0, 0, 0
    for passed_ns, what in steps:
        now_ns += passed_ns
        integral_ns += concurrency * passed_ns
        if what == "came":
            load.came(now_ns)
            concurrency, arrivals = concurrency + 1, arrivals + 1
        elif what == "ended" and concurrency:
            load.ended(now_ns)
            concurrency -= 1
        elif what == "turned away":
            load.turned_away(now_ns)
            arrivals, turned_away, peak = arrivals + 1, turned_away + 1, max(peak, concurrency + 1)
        peak = max(peak, concurrency)
        if what == "read":
            demand = load.demand(0, now_ns)
            assert (demand.concurrency_ns, demand.peak, demand.arrivals) == (integral_ns, peak, arrivals)
            assert demand.turned_away == turned_away
            assert (demand.in_flight, demand.last_active_ns) == (concurrency, load.last_active_ns) or concurrency
            peak = concurrency
