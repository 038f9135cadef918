"""The meter: shares sum to busy time exactly, and each is what the law says it is."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.core.meter import BusyMeter

STEPS = st.lists(
    st.tuples(
        st.integers(0, 10**11),  # time passes
        st.integers(0, 5),  # 0 = somebody leaves, else somebody comes in
        st.integers(1, 4096),  # with so many rows
        st.integers(0, 10**6),  # who leaves
    ),
    max_size=60,
)


class Law:
    """DESIGN §6 word by word, in exact fractions: at each instant, busy time belongs to those inside by their rows."""

    def __init__(self) -> None:
        self.busy_ns = 0
        self.shares: dict[int, Fraction] = {}
        self.rows: dict[int, int] = {}

    def pass_time(self, elapsed_ns: int) -> None:
        if self.rows:
            self.busy_ns += elapsed_ns
            total = sum(self.rows.values())
            for who, rows in self.rows.items():
                self.shares[who] += Fraction(elapsed_ns * rows, total)


@given(steps=STEPS)
def test_shares_are_exact_under_any_interleaving(steps: list[tuple[int, int, int, int]]) -> None:
    meter, law = BusyMeter(), Law()
    tickets: dict[int, int] = {}
    taken = now_ns = 0
    done = 0

    def leave(who: int) -> None:
        nonlocal taken, done
        rows = law.rows.pop(who)
        share = meter.leave(tickets.pop(who), rows, now_ns)
        taken += share
        done += 1
        # Each leaver takes the whole part of what is owed so far: remainders stay below one ns a leaver.
        assert abs(share - law.shares[who]) <= done + 1

    for number, (elapsed_ns, comes, rows, pick) in enumerate(steps):
        now_ns += elapsed_ns
        law.pass_time(elapsed_ns)
        if comes:
            tickets[number] = meter.enter(rows, now_ns)
            law.rows[number], law.shares[number] = rows, Fraction(0)
        elif law.rows:
            leave(sorted(law.rows)[pick % len(law.rows)])
        assert meter.busy_ns(now_ns) == meter.total_busy_ns == law.busy_ns
        assert meter.total_share_ns == taken
        assert meter._rows == sum(law.rows.values())
        if not law.rows:
            assert taken == law.busy_ns
    for who in sorted(law.rows):
        leave(who)
    assert meter.total_share_ns == taken == meter.total_busy_ns == law.busy_ns


def test_no_request_gets_a_negative_share() -> None:
    meter = BusyMeter()
    tickets = [meter.enter(1, 0) for _ in range(7)]
    shares = [meter.leave(ticket, 1, 1) for ticket in tickets]
    assert sum(shares) == 1
    assert min(shares) >= 0


def test_a_batch_of_two_splits_by_rows() -> None:
    meter = BusyMeter()
    small, large = meter.enter(1, 100), meter.enter(3, 100)
    assert [meter.leave(small, 1, 500), meter.leave(large, 3, 500)] == [100, 300]


def test_time_alone_inside_belongs_to_the_one_inside() -> None:
    meter = BusyMeter()
    first = meter.enter(1, 0)
    second = meter.enter(1, 1000)
    assert meter.leave(first, 1, 3000) == 1000 + 1000
    assert meter.leave(second, 1, 10_000) == 1000 + 7000
    assert meter.total_busy_ns == 10_000


def test_idle_time_belongs_to_nobody() -> None:
    meter = BusyMeter()
    assert meter.leave(meter.enter(5, 1_000), 5, 1_010) == 10
    assert meter.busy_ns(10**12) == 10
    assert meter.leave(meter.enter(5, 10**12), 5, 10**12 + 7) == 7
    assert (meter.total_busy_ns, meter.total_share_ns) == (17, 17)


def test_busy_time_runs_while_somebody_is_inside() -> None:
    meter = BusyMeter()
    meter.enter(1, 50)
    assert meter.busy_ns(80) == 30
    assert meter.total_busy_ns == 0


def test_remainders_do_not_pile_up_in_a_year_without_a_pause() -> None:
    meter = BusyMeter()
    year_ns = 365 * 86_400 * 10**9
    resident = meter.enter(3, 0)
    taken = 0
    for number in range(1, 1001):
        now_ns = year_ns * number // 1000
        taken += meter.leave(meter.enter(7, now_ns - 11), 7, now_ns)
    taken += meter.leave(resident, 3, year_ns)
    assert taken == meter.total_busy_ns == year_ns


def test_time_that_goes_back_is_an_error() -> None:
    meter = BusyMeter()
    meter.enter(1, 100)
    with pytest.raises(ValueError, match="back by 1 ns"):
        meter.enter(1, 99)
