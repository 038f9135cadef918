"""A replica's figures are claims of a process that runs user code: whatever it says, the law holds and it is marked."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.attribute import LifeAccount, Parts
from serve.core.clock import NS_PER_MS
from serve.core.frames import Usage

ASSIGNED_NS, READY_NS = 1000 * NS_PER_MS, 1010 * NS_PER_MS
ANY_NS = st.one_of(st.integers(-(2**70), 2**70), st.integers(900 * NS_PER_MS, 1100 * NS_PER_MS))


def usage(**figures: int) -> Usage:
    honest = {"entered_ns": READY_NS, "left_ns": 1020 * NS_PER_MS, "infer_ns": 0, "share_ns": 10 * NS_PER_MS}
    honest |= {"total_busy_ns": 10 * NS_PER_MS, "total_share_ns": 10 * NS_PER_MS}
    return Usage(**{"rows": 1, "batch_rows": 1, "answered": 1, "executions": 1} | honest | figures)


def ready() -> LifeAccount:
    account = LifeAccount(ASSIGNED_NS)
    account.ready(READY_NS, READY_NS)
    return account


@pytest.mark.parametrize(
    ("figures", "parts"),
    [
        ({}, Parts(10_000, 10_000, 0, 20_000, 0)),
        ({"left_ns": 1 << 62}, Parts(10_000, 10_000, 0, 20_000, 0)),
        ({"left_ns": 0}, Parts(10_000, 0, 0, 30_000, 0)),
        ({"share_ns": 1 << 62, "total_busy_ns": 1 << 62}, Parts(10_000, 10_000, 0, 20_000, 0)),
        ({"share_ns": -5 * NS_PER_MS}, Parts(10_000, 0, 10_000, 20_000, 0)),
        ({"total_busy_ns": -1}, Parts(10_000, 0, 0, 30_000, 0)),
    ],
)
def test_a_claim_that_cannot_be_is_bounded_and_marked(figures: dict[str, int], parts: Parts) -> None:
    account = ready()
    account.answered(usage(**figures), 1020 * NS_PER_MS)
    assert account.parts(1040 * NS_PER_MS) == parts
    assert account.bounded is bool(figures)


def test_busy_time_that_goes_back_takes_nothing_away_and_is_marked() -> None:
    account = ready()
    account.busy_reported(1020 * NS_PER_MS, 8 * NS_PER_MS, 1020 * NS_PER_MS)
    was_bounded = account.bounded
    account.busy_reported(1021 * NS_PER_MS, 3 * NS_PER_MS, 1021 * NS_PER_MS)
    assert (was_bounded, account.bounded) == (False, True)
    assert account.parts(1021 * NS_PER_MS).busy_us == 8000


@pytest.mark.parametrize("at_ns", [0, 1 << 62])
def test_ready_cannot_be_before_the_life_began_or_in_the_future(at_ns: int) -> None:
    account = LifeAccount(ASSIGNED_NS)
    account.ready(at_ns, READY_NS)
    assert account.bounded
    assert account.parts(1040 * NS_PER_MS).life_us == 40_000
    assert account.parts(1040 * NS_PER_MS).cold_us == (0 if at_ns == 0 else 10_000)


@given(
    st.lists(st.tuples(st.sampled_from(["ready", "usage", "stats", "drain"]), ANY_NS, ANY_NS, ANY_NS)), st.integers()
)
def test_no_claims_at_all_lengthen_a_life_or_break_its_sum(claims: list[tuple[str, int, int, int]], seed: int) -> None:
    account, dice, now_ns, billed_us = LifeAccount(ASSIGNED_NS), random.Random(seed), ASSIGNED_NS, 0
    for kind, one, other, third in claims:
        now_ns += dice.randrange(3 * NS_PER_MS)
        if kind == "ready":
            account.ready(one, now_ns)
        elif kind == "stats":
            account.busy_reported(one, other, now_ns)
        elif kind == "drain":
            account.drain(now_ns)
        else:
            share = account.answered(usage(entered_ns=one, left_ns=other, share_ns=third, total_busy_ns=one), now_ns)
            assert min(share) >= 0
            billed_us += share.busy_us
        parts = account.parts(now_ns)
        assert account.until_ns(now_ns) == now_ns
        assert min(parts) >= 0
        assert parts.life_us == (now_ns - ASSIGNED_NS) // 1000
        assert parts.billed_us == billed_us
    account.exited(now_ns)
    assert account.parts(now_ns + NS_PER_MS).life_us == (now_ns - ASSIGNED_NS) // 1000
