"""What a revision cost and how its callers fared: the same figures of what was recorded and of what is simulated.

Costs come from a ledger in the way of `billing.report`, by the price book: of the real one, and of the one that a
simulated platform wrote.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from billing.attribute import Parts
from billing.lives import RecordedLife
from billing.machine_report import MachineBooks
from billing.prices import PriceBook, apportion
from serve.core.ids import RevisionKey

_CHARGED = """SELECT wall_ns FROM main.requests
    WHERE deployment = ? AND revision = ? AND wall_ns >= ? AND wall_ns < ? AND charged"""
_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class Outcome(NamedTuple):
    """How one caller fared."""

    wait_us: int | None
    """Until its answer, but for its service time; None where it was refused."""
    is_cold: bool


@dataclass(frozen=True, slots=True)
class Costs:
    """Of replicas in a time; whole billionths of the currency that sum to the exact total, rounded once."""

    busy_nano: int
    cold_nano: int
    idle_nano: int
    """Draining included."""
    request_nano: int
    replica_us: int
    starts: int

    @property
    def total_nano(self) -> int:
        return self.busy_nano + self.cold_nano + self.idle_nano + self.request_nano


@dataclass(frozen=True, slots=True)
class Figures:
    outcomes: list[Outcome]
    """Of every caller, in the order in which they came."""
    costs: Costs

    @property
    def refused(self) -> int:
        return sum(outcome.wait_us is None for outcome in self.outcomes)

    @property
    def cold_starts(self) -> int:
        """Requests that waited for a replica to start."""
        return sum(outcome.is_cold for outcome in self.outcomes)

    def quantiles_us(self) -> dict[str, int | None]:
        """Return how long callers waited, by the nearest rank; None where nobody was answered."""
        waits_us = sorted(outcome.wait_us for outcome in self.outcomes if outcome.wait_us is not None)
        last = len(waits_us) - 1
        return {key: waits_us[round(share * last)] if waits_us else None for key, share in _QUANTILES.items()}

    def as_json(self) -> dict[str, Any]:
        costs, requests = self.costs, len(self.outcomes)
        return {
            "requests": requests,
            "refused": self.refused,
            "cold_starts": self.cold_starts,
            "cold_rate": self.cold_starts / requests if requests else 0.0,
            "wait_us": self.quantiles_us(),
            "starts": costs.starts,
            "replica_us": costs.replica_us,
            "cost_nano": costs.total_nano,
            "busy_cost_nano": costs.busy_nano,
            "cold_cost_nano": costs.cold_nano,
            "idle_cost_nano": costs.idle_nano,
            "request_cost_nano": costs.request_nano,
            "per_1000_cost_nano": round(costs.total_nano * 1000 / requests) if requests else 0,
        }


def costs_of(
    connection: sqlite3.Connection,
    key: RevisionKey,
    lives: Iterable[RecordedLife],
    prices: PriceBook,
    begin_ns: int,
    end_ns: int,
) -> Costs:
    """Return what these lives of a revision, and its requests, cost in [begin_ns, end_ns) of wall time."""
    books = MachineBooks(connection, prices, begin_ns, end_ns)
    busy = cold = idle = fees = replica_us = starts = 0
    for life in lives:
        starts += begin_ns <= books.assigned_wall_ns(life) < end_ns
        for piece, entry in books.pieces(life):
            parts = Parts(*piece.parts)
            idle_us, mib = parts.idle_us + parts.drain_us, life.memory_mib
            replica_us += parts.life_us
            busy += entry.cost_numerator(life.cores * parts.busy_us, mib * parts.busy_us)
            cold += entry.cost_numerator(life.cores * parts.cold_us, mib * parts.cold_us)
            idle += entry.cost_numerator(0, mib * idle_us)
    for (wall_ns,) in connection.execute(_CHARGED, (*key, begin_ns, end_ns)):
        fees += prices.at(wall_ns).cost_numerator(0, 0, 1)
    busy_nano, cold_nano, idle_nano, request_nano = apportion([busy, cold, idle, fees])
    return Costs(busy_nano, cold_nano, idle_nano, request_nano, replica_us, starts)
