from __future__ import annotations

from fractions import Fraction

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from billing.attribute import LifeAccount, Parts
from serve.core.clock import NS_PER_MS, VirtualClock
from tests.billing.replay import Inside, Metered


def started(cold_ms: int = 5) -> tuple[VirtualClock, LifeAccount, Metered]:
    clock = VirtualClock(1_000_000)
    account = LifeAccount(clock.monotonic_ns())
    clock.advance(cold_ms / 1000)
    account.ready(clock.monotonic_ns(), clock.monotonic_ns())
    return clock, account, Metered(clock)


def test_a_life_that_never_became_ready_is_all_cold() -> None:
    account = LifeAccount(100)
    account.drain(2_000_100)
    account.exited(5 * NS_PER_MS + 100, None)
    assert account.parts(9 * NS_PER_MS) == Parts(5000, 0, 0, 0, 0)


def test_the_first_answered_request_bears_the_cold_start_and_no_other_does() -> None:
    clock, account, replica = started(cold_ms=5)
    first, second = replica.enter(), replica.enter()
    clock.advance(0.002)
    assert account.answered(replica.leave(second), clock.monotonic_ns()).cold_us == 5000
    assert account.answered(replica.leave(first), clock.monotonic_ns()).cold_us == 0
    assert account.parts(clock.monotonic_ns()).cold_us == 5000


def test_requests_inside_together_share_the_time_by_rows() -> None:
    clock, account, replica = started()
    one, three = replica.enter(rows=1), replica.enter(rows=3)
    clock.advance(0.004)
    assert account.answered(replica.leave(one), clock.monotonic_ns()).busy_us == 1000
    assert account.answered(replica.leave(three), clock.monotonic_ns()).busy_us == 3000


def test_the_share_of_a_cancelled_batch_mate_is_lost_and_is_not_put_on_the_other() -> None:
    clock, account, replica = started()
    cancelled, answered = replica.enter(), replica.enter()
    clock.advance(0.002)
    replica.leave(cancelled)
    clock.advance(0.001)
    assert account.answered(replica.leave(answered), clock.monotonic_ns()).busy_us == 2000
    assert account.parts(clock.monotonic_ns()) == Parts(5000, 2000, 1000, 0, 0)


def test_work_that_never_answered_is_lost_once_the_replica_reports_it() -> None:
    clock, account, replica = started()
    cancelled = replica.enter()
    clock.advance(0.003)
    replica.leave(cancelled)
    account.busy_reported(clock.monotonic_ns(), replica.meter.total_busy_ns, clock.monotonic_ns())
    clock.advance(0.001)
    assert account.parts(clock.monotonic_ns()) == Parts(5000, 0, 3000, 1000, 0)


def test_busy_wins_over_drain() -> None:
    clock, account, replica = started()
    clock.advance(0.001)
    inside = replica.enter()
    clock.advance(0.002)
    account.drain(clock.monotonic_ns())
    clock.advance(0.003)
    account.answered(replica.leave(inside), clock.monotonic_ns())
    clock.advance(0.004)
    account.exited(clock.monotonic_ns(), None)
    assert account.parts(clock.monotonic_ns()) == Parts(5000, 5000, 0, 1000, 4000)
    assert not account.estimated


def test_what_is_inside_keeps_a_draining_replica_busy_before_it_answers() -> None:
    clock, account, replica = started()
    clock.advance(0.001)
    sent_ns = replica.enter().entered_ns
    account.drain(clock.monotonic_ns())
    clock.advance(0.003)
    assert account.parts(clock.monotonic_ns(), sent_ns) == Parts(5000, 0, 3000, 1000, 0)


def test_a_request_that_dies_with_its_replica_is_lost_from_when_it_was_sent_and_estimated() -> None:
    clock, account, replica = started()
    clock.advance(0.002)
    sent_ns = clock.monotonic_ns()
    replica.enter()
    clock.advance(0.003)
    account.exited(clock.monotonic_ns(), sent_ns)
    assert account.parts(clock.monotonic_ns()) == Parts(5000, 0, 3000, 2000, 0)
    assert account.estimated


def test_a_stretch_that_was_reported_is_not_estimated_again_at_the_exit() -> None:
    clock, account, replica = started()
    sent_ns = clock.monotonic_ns()
    replica.enter()
    answered = replica.enter()
    clock.advance(0.002)
    account.answered(replica.leave(answered), clock.monotonic_ns())
    clock.advance(0.001)
    account.exited(clock.monotonic_ns(), sent_ns)
    assert account.parts(clock.monotonic_ns()) == Parts(5000, 1000, 2000, 0, 0)


def test_what_is_inside_counts_as_lost_until_it_answers() -> None:
    clock, account, replica = started()
    sent_ns = clock.monotonic_ns()
    inside = replica.enter()
    clock.advance(0.002)
    assert account.parts(clock.monotonic_ns(), sent_ns) == Parts(5000, 0, 2000, 0, 0)
    account.answered(replica.leave(inside), clock.monotonic_ns())
    assert account.parts(clock.monotonic_ns(), None) == Parts(5000, 2000, 0, 0, 0)


def test_a_usage_after_the_exit_shares_nothing() -> None:
    clock, account, replica = started()
    inside = replica.enter()
    clock.advance(0.002)
    account.exited(clock.monotonic_ns(), inside.entered_ns)
    closed = account.parts(clock.monotonic_ns())
    assert account.answered(replica.leave(inside), clock.monotonic_ns()) == (0, 0)
    assert account.parts(clock.monotonic_ns()) == closed


def test_a_replica_that_claims_more_than_its_life_is_held_to_its_life() -> None:
    clock, account, replica = started()
    inside = replica.enter()
    clock.advance(0.002)
    usage = replica.leave(inside)._replace(share_ns=10**12, total_busy_ns=10**12)
    assert account.answered(usage, clock.monotonic_ns()).busy_us == 2000
    assert account.parts(clock.monotonic_ns()) == Parts(5000, 2000, 0, 0, 0)


class AnyLife(RuleBasedStateMachine):
    """A life in any order of events, beside a slow exact model of what every instant was."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock(123_456_789)
        self.account = LifeAccount(self.clock.monotonic_ns())
        self.replica = Metered(self.clock)
        self.inside: list[Inside] = []
        self.owed: dict[int, Fraction] = {}
        self.billed_us = self.cold_given_us = 0
        self.true = {"cold": 0, "busy": 0, "idle": 0, "drain": 0}
        self.billed_ns = Fraction(0)
        self.is_ready = self.is_draining = self.is_reported = self.was_cancelled = False
        self.answers = 0

    @rule(elapsed_ns=st.integers(0, 5_000_000))
    def time_passes(self, elapsed_ns: int) -> None:
        self.clock.advance(elapsed_ns / 1e9)
        if self.inside:
            rows = sum(request.rows for request in self.inside)
            for request in self.inside:
                self.owed[id(request)] += Fraction(elapsed_ns * request.rows, rows)
            self.true["busy"] += elapsed_ns
            self.is_reported = self.is_reported and elapsed_ns == 0
        else:
            self.true["cold" if not self.is_ready else "drain" if self.is_draining else "idle"] += elapsed_ns

    @precondition(lambda self: not self.is_ready)
    @rule()
    def becomes_ready(self) -> None:
        self.account.ready(self.clock.monotonic_ns(), self.clock.monotonic_ns())
        self.is_ready = self.is_reported = True

    @precondition(lambda self: self.is_ready)
    @rule(rows=st.integers(1, 40))
    def request_enters(self, rows: int) -> None:
        request = self.replica.enter(rows)
        self.inside.append(request)
        self.owed[id(request)] = Fraction(0)

    @precondition(lambda self: self.inside)
    @rule(which=st.integers(0, 100))
    def request_answers(self, which: int) -> None:
        request = self.inside.pop(which % len(self.inside))
        share = self.account.answered(self.replica.leave(request), self.clock.monotonic_ns())
        self.billed_us += share.busy_us
        self.cold_given_us += share.cold_us
        self.billed_ns += self.owed[id(request)]
        self.answers += 1
        self.is_reported = True

    @precondition(lambda self: self.inside)
    @rule(which=st.integers(0, 100))
    def request_is_cancelled(self, which: int) -> None:
        request = self.inside.pop(which % len(self.inside))
        self.replica.leave(request)
        self.was_cancelled = True
        self.is_reported = False

    @precondition(lambda self: self.is_ready)
    @rule()
    def replica_reports(self) -> None:
        now_ns = self.clock.monotonic_ns()
        self.account.busy_reported(now_ns, self.replica.meter.busy_ns(now_ns), now_ns)
        self.is_reported = True

    @rule()
    def drain_begins(self) -> None:
        self.account.drain(self.clock.monotonic_ns())
        self.is_draining = True

    @invariant()
    def parts_sum_to_life_and_shares_to_billed(self) -> None:
        oldest_ns = min((request.entered_ns for request in self.inside), default=None)
        parts = self.account.parts(self.clock.monotonic_ns(), oldest_ns)
        assert min(parts) >= 0
        assert parts.life_us == sum(self.true.values()) // 1000
        assert parts.billed_us == self.billed_us
        assert self.cold_given_us == (parts.cold_us if self.answers else 0)
        assert abs(parts.cold_us - self.true["cold"] / 1000) <= 1
        assert abs(parts.billed_us - self.billed_ns / 1000) <= 2
        if self.is_reported or (self.inside and not self.was_cancelled):
            assert abs(parts.busy_us - self.true["busy"] / 1000) <= 2
            if not self.was_cancelled:
                assert abs(parts.idle_us - self.true["idle"] / 1000) <= 2
                assert abs(parts.drain_us - self.true["drain"] / 1000) <= 2

    def teardown(self) -> None:
        oldest_ns = min((request.entered_ns for request in self.inside), default=None)
        self.account.exited(self.clock.monotonic_ns(), oldest_ns)
        parts = self.account.parts(self.clock.monotonic_ns() + 10**9)
        assert parts.life_us == sum(self.true.values()) // 1000
        assert parts.billed_us == self.billed_us


TestAnyLife = AnyLife.TestCase
TestAnyLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
