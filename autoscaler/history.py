"""What is kept for people: why replicas came and went, and how long cold starts take."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from serve.core.clock import NS_PER_MS, NS_PER_S, Clock
from serve.core.events import Phase
from serve.core.ids import RevisionKey

DECISIONS_KEPT = 200
STARTS_KEPT = 50


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """One line of `serve explain`."""

    wall_ns: int
    key: RevisionKey
    replicas_before: int
    replicas_after: int
    reason: str


class DecisionLog:
    """The last decisions of each deployment. Owned by the loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: dict[str, deque[DecisionRecord]] = {}

    def add(self, key: RevisionKey, before: int, after: int, reason: str) -> None:
        """Keep a decision; one that changes nothing and only repeats the last of its revision is not news."""
        record = DecisionRecord(self._clock.wall_ns(), key, before, after, reason)
        records = self._records.setdefault(record.key.name, deque(maxlen=DECISIONS_KEPT))
        if record.replicas_before == record.replicas_after:
            last = next((known for known in reversed(records) if known.key == record.key), None)
            if last is not None and (last.replicas_after, last.reason) == (record.replicas_after, record.reason):
                return
        records.append(record)

    def of(self, name: str) -> list[DecisionRecord]:
        """Return the deployment's decisions, oldest first."""
        return list(self._records.get(name, ()))

    def forget(self, name: str) -> None:
        self._records.pop(name, None)


@dataclass(frozen=True, slots=True)
class ColdStartSummary:
    """Recent starts of one revision, replica ordered to ready. Milliseconds; empty dicts before the first."""

    count: int
    total_ms: dict[str, float]
    """Keys p50 and p95."""
    phases_ms: dict[Phase, dict[str, float]]


class ColdStartHistory:
    """Durations of the last starts of one revision. Owned by its fleet."""

    def __init__(self) -> None:
        self._starts: deque[tuple[int, dict[Phase, int]]] = deque(maxlen=STARTS_KEPT)
        self._assumed_s: float | None = None

    def add(self, total_ns: int, phases_ns: dict[Phase, int]) -> None:
        self._starts.append((total_ns, dict(phases_ns)))

    def assume(self, start_s: float | None) -> None:
        """Expect so long a start until one was seen; it is no part of the summary."""
        self._assumed_s = start_s

    def expected_s(self) -> float | None:
        """Return the median of the recent starts; before the first what was assumed, or None."""
        if not self._starts:
            return self._assumed_s
        return quantile([total_ns for total_ns, _ in self._starts], 0.5) / NS_PER_S

    def summary(self) -> ColdStartSummary:
        totals_ns = [total_ns for total_ns, _ in self._starts]
        by_phase: dict[Phase, list[int]] = {}
        for _, phases_ns in self._starts:
            for phase, duration_ns in phases_ns.items():
                by_phase.setdefault(phase, []).append(duration_ns)
        return ColdStartSummary(
            len(totals_ns),
            _quantiles_ms(totals_ns),
            {phase: _quantiles_ms(durations_ns) for phase, durations_ns in by_phase.items()},
        )


def quantile(values: list[int], share: float) -> int:
    """Return the nearest-rank quantile: a value that was really measured."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _quantiles_ms(durations_ns: list[int]) -> dict[str, float]:
    if not durations_ns:
        return {}
    return {f"p{round(share * 100)}": quantile(durations_ns, share) / NS_PER_MS for share in (0.5, 0.95)}
