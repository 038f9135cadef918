"""Demand over time: exact averages over sliding windows, from readings at irregular times.

The gate hands out a cumulative integral of concurrency, so a reading can be late without losing a request: the average
over an interval is the difference of two readings divided by its length (what Prometheus' `rate` does). Only the
trailing edge of a window, where it falls between two readings, is interpolated.

Pure: takes times, keeps no clock.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from operator import attrgetter

FILL_NS = 1_000_000_000
"""A window that has just begun to fill is taken to be at least this long: a millisecond of burst is not yet a trend."""

_BUCKETS_PER_WINDOW = 12


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of a revision's demand."""

    at_ns: int
    concurrency_ns: int
    """Integral of concurrency up to `at_ns`."""
    peak: int
    """Highest concurrency since the sample before this one."""


_at_ns = attrgetter("at_ns")


@dataclass(frozen=True, slots=True)
class DemandWindow:
    """The readings of the last `horizon_ns`, oldest first. Immutable; `add` returns the next one.

    Readings closer together than `bucket_ns` are joined (any three consecutive ones span at least a bucket), so that
    there are at most `2 · horizon_ns / bucket_ns + 3` of them, however often demand is read.
    """

    samples: tuple[Sample, ...] = ()

    def add(self, sample: Sample, horizon_ns: int, bucket_ns: int) -> DemandWindow:
        """Return the window with a further reading. Raise ValueError if it is older than the last one."""
        samples = list(self.samples)
        if samples and sample.at_ns < samples[-1].at_ns:
            raise ValueError(f"a reading came {samples[-1].at_ns - sample.at_ns} ns before the one that preceded it")
        is_same_instant = bool(samples) and sample.at_ns == samples[-1].at_ns
        if is_same_instant or (len(samples) >= 2 and sample.at_ns - samples[-2].at_ns < bucket_ns):
            replaced = samples.pop()
            sample = Sample(sample.at_ns, sample.concurrency_ns, max(replaced.peak, sample.peak))
        samples.append(sample)
        oldest_ns = sample.at_ns - horizon_ns
        first = max(0, bisect_right(samples, oldest_ns, key=_at_ns) - 1)
        return DemandWindow(tuple(samples[first:]))

    def average(self, window_ns: int) -> float | None:
        """Return the time-weighted mean concurrency of the last `window_ns` before the last reading.

        A window that reaches further back than the first reading counts what it has (but see FILL_NS). None while
        there are fewer than two readings: no data is no opinion.
        """
        if len(self.samples) < 2:
            return None
        last = self.samples[-1]
        start_ns = max(self.samples[0].at_ns, last.at_ns - window_ns)
        return (last.concurrency_ns - self._integral_at(start_ns)) / self.covered_ns(window_ns)

    def covered_ns(self, window_ns: int) -> int:
        """Return the length of what `average` averages: the window, or the part of it that has been seen."""
        seen_ns = self.samples[-1].at_ns - self.samples[0].at_ns if self.samples else 0
        return max(min(window_ns, seen_ns), min(window_ns, FILL_NS))

    def peak(self, window_ns: int) -> int:
        """Return the highest concurrency latched by any reading of the last `window_ns`."""
        if not self.samples:
            return 0
        start_ns = self.samples[-1].at_ns - window_ns
        return max(sample.peak for sample in self.samples if sample.at_ns > start_ns)

    def _integral_at(self, at_ns: int) -> int:
        """Return the integral at a time within the samples; between two of them demand counts as even."""
        index = bisect_right(self.samples, at_ns, key=_at_ns)
        before = self.samples[index - 1]
        if before.at_ns == at_ns or index == len(self.samples):
            return before.concurrency_ns
        after = self.samples[index]
        grown_ns = after.concurrency_ns - before.concurrency_ns
        return before.concurrency_ns + grown_ns * (at_ns - before.at_ns) // (after.at_ns - before.at_ns)


def bucket_ns(panic_ns: int) -> int:
    """Return how close together readings are kept apart: a panic window sees at least a dozen of them."""
    return max(1, panic_ns // _BUCKETS_PER_WINDOW)
