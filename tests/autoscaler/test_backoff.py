"""How long a failing revision is left alone."""

from __future__ import annotations

from autoscaler.backoff import FIRST_DELAY_NS, LONGEST_DELAY_NS, Backoff
from serve.core.clock import NS_PER_S


def test_pauses_double_from_a_fifth_of_a_second_to_a_minute_and_forget_everything_with_a_success() -> None:
    backoff = Backoff(jitter=lambda: 0.0)
    pauses = []
    for _ in range(12):
        backoff.start_failed(0)
        pauses.append(backoff.until_ns)
    assert pauses[:3] == [FIRST_DELAY_NS, 2 * FIRST_DELAY_NS, 4 * FIRST_DELAY_NS]
    assert pauses[-1] == LONGEST_DELAY_NS
    backoff.became_ready()
    assert (backoff.failures, backoff.until_ns) == (0, 0)
    shortened = Backoff(jitter=lambda: 1.0)
    shortened.start_failed(0)
    assert shortened.until_ns == FIRST_DELAY_NS // 2


def test_crashes_far_apart_are_each_replaced_at_once() -> None:
    backoff = Backoff(lambda: 0.5)
    for hour in range(5):
        backoff.crashed(ready_for_ns=3600 * NS_PER_S, now_ns=hour * 3600 * NS_PER_S)
        assert backoff.until_ns == 0
    backoff.crashed(ready_for_ns=NS_PER_S, now_ns=7 * 3600 * NS_PER_S)
    assert backoff.until_ns > 7 * 3600 * NS_PER_S
