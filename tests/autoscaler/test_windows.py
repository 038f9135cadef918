"""Windows against a brute-force integral of the same demand."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.windows import FILL_NS, DemandWindow, Sample

S = 1_000_000_000

steps = st.lists(
    st.tuples(st.integers(min_value=1, max_value=5 * S), st.integers(min_value=0, max_value=50)),
    min_size=1,
    max_size=60,
)
"""(duration, concurrency during it), one after the other: demand as it really was."""


def integral(demand: list[tuple[int, int]], start_ns: int, end_ns: int) -> int:
    total, at_ns = 0, 0
    for duration_ns, concurrency in demand:
        overlap_ns = min(at_ns + duration_ns, end_ns) - max(at_ns, start_ns)
        total += max(0, overlap_ns) * concurrency
        at_ns += duration_ns
    return total


def read_at_every_change(demand: list[tuple[int, int]], horizon_ns: int, bucket_ns: int) -> DemandWindow:
    window = DemandWindow().add(Sample(0, 0, 0), horizon_ns, bucket_ns)
    for index in range(len(demand)):
        at_ns = sum(duration_ns for duration_ns, _ in demand[: index + 1])
        sample = Sample(at_ns, integral(demand, 0, at_ns), demand[index][1])
        window = window.add(sample, horizon_ns, bucket_ns)
    return window


@given(steps, st.integers(min_value=1, max_value=60 * S))
def test_average_of_demand_read_at_every_change_is_the_brute_force_integral(
    demand: list[tuple[int, int]], window_ns: int
) -> None:
    window = read_at_every_change(demand, horizon_ns=60 * S, bucket_ns=1)
    now_ns = sum(duration_ns for duration_ns, _ in demand)
    seen_ns = min(window_ns, now_ns)
    expected = integral(demand, now_ns - seen_ns, now_ns) / max(seen_ns, min(window_ns, FILL_NS))
    assert window.average(window_ns) == pytest.approx(expected, rel=1e-9, abs=1e-6)


@given(steps, st.integers(min_value=1, max_value=60 * S))
def test_joined_readings_lose_nothing_but_detail_at_the_trailing_edge(
    demand: list[tuple[int, int]], window_ns: int
) -> None:
    bucket_ns = S // 2
    window = read_at_every_change(demand, 60 * S, bucket_ns)
    now_ns = sum(duration_ns for duration_ns, _ in demand)
    start_ns = now_ns - min(window_ns, now_ns)
    before = max(sample.at_ns for sample in window.samples if sample.at_ns <= start_ns)
    after = min(sample.at_ns for sample in window.samples if sample.at_ns >= start_ns)
    average = window.average(window_ns)
    assert average is not None
    served_ns = average * window.covered_ns(window_ns)
    tolerance = 1 + 1e-9 * integral(demand, 0, now_ns)
    assert integral(demand, after, now_ns) - tolerance <= served_ns <= integral(demand, before, now_ns) + tolerance


@given(
    st.lists(st.integers(min_value=0, max_value=S), min_size=1, max_size=300),
    st.integers(min_value=1, max_value=10 * S),
    st.integers(min_value=1, max_value=2 * S),
)
def test_number_of_readings_kept_is_bounded_however_often_demand_is_read(
    pauses_ns: list[int], horizon_ns: int, bucket_ns: int
) -> None:
    window = DemandWindow()
    for at_ns in itertools.accumulate(pauses_ns):
        window = window.add(Sample(at_ns, at_ns, 1), horizon_ns, bucket_ns)
        assert len(window.samples) <= 2 * horizon_ns / bucket_ns + 4
        assert window.samples[-1].at_ns == at_ns
        times_ns = [sample.at_ns for sample in window.samples]
        assert times_ns == sorted(set(times_ns))


@given(steps, st.integers(min_value=1, max_value=100 * S))
def test_peak_is_the_highest_latched_in_the_window_joined_or_not(demand: list[tuple[int, int]], window_ns: int) -> None:
    window = read_at_every_change(demand, horizon_ns=60 * S, bucket_ns=S // 2)
    window_ns = min(window_ns, 60 * S)
    ends_ns = list(itertools.accumulate(duration_ns for duration_ns, _ in demand))
    now_ns = ends_ns[-1]
    inside = [peak for end_ns, (_, peak) in zip(ends_ns, demand, strict=True) if end_ns > now_ns - window_ns]
    assert window.peak(window_ns) >= max(inside)
    assert window.peak(window_ns) <= max(peak for _, peak in demand)


def test_burst_between_two_late_readings_counts_in_full() -> None:
    window = DemandWindow().add(Sample(0, 0, 0), 60 * S, S // 2)
    window = window.add(Sample(10 * S, 100 * S, 40), 60 * S, S // 2)
    assert window.average(60 * S) == pytest.approx(10.0)
    assert window.peak(60 * S) == 40


def test_window_that_has_just_begun_counts_as_a_second() -> None:
    window = DemandWindow().add(Sample(0, 0, 1), 60 * S, S // 2)
    assert window.average(6 * S) is None, "one reading is no data"
    window = window.add(Sample(S // 10, S // 10 * 100, 100), 60 * S, S // 2)
    assert window.average(6 * S) == pytest.approx(10.0)
    assert window.average(S // 20) == pytest.approx(100.0), "a window shorter than a second is taken as it is"


def test_reading_from_the_past_is_refused() -> None:
    window = DemandWindow().add(Sample(5, 0, 0), 60, 1)
    with pytest.raises(ValueError, match="2 ns before"):
        window.add(Sample(3, 0, 0), 60, 1)


def test_window_without_readings_has_no_opinion() -> None:
    assert DemandWindow().average(60) is None
    assert DemandWindow().peak(60) == 0
