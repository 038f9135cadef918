"""A bill takes in few of many moments: those between which something is cut."""

from __future__ import annotations

from billing.tenures import Timeline, thinned

HOUR_NS = 3_600_000_000_000
MINUTE_NS = 60_000_000_000


def test_only_moments_beside_a_border_matter_to_a_bill() -> None:
    timeline = Timeline([(0, 10 * HOUR_NS), (90 * MINUTE_NS + 1, 20 * HOUR_NS)])
    minutes = [minute * MINUTE_NS for minute in range(1, 181)]

    def left(borders_ns: list[int], bucket_ns: int = 0) -> list[int]:
        kept = thinned(minutes, 0, lambda moment: timeline.place(moment, borders_ns, bucket_ns))
        return [moment // MINUTE_NS for moment in kept]

    assert left([]) == [90, 91, 180]
    assert left([10 * HOUR_NS + 1, 10 * HOUR_NS + 30 * MINUTE_NS]) == [1, 29, 30, 90, 91, 180]
    assert left([], HOUR_NS) == [59, 60, 90, 91, 150, 151, 180]
