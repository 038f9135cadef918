"""The machine's part of a bill: its tenures within the time asked for, and its lines."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from billing.attribute import Parts
from billing.lines import DEPLOYMENTS, MachineBill, MachineTally, charged_core_us, pieces
from billing.lives import RecordedLife
from billing.prices import PriceBook, Prices
from billing.spans import Span, multiples_between
from billing.tenures import Tenure, read_tenures, read_timelines
from serve.core.clock import NS_PER_US


@dataclass(frozen=True, slots=True)
class MachineReport:
    bill: MachineBill
    tenures: list[dict[str, Any]]
    """Those that touch the time asked for: writer, begin_ns and end_ns by the wall clock, elapsed_us, cores, …"""
    gap_us: int
    """Time between those tenures: the machine was not ours."""
    outside: tuple[int, int]
    """core·µs and MiB·µs of lives that were recorded before tenures were: on the bill, but on no line of a machine."""

    def as_json(self, *, with_costs: bool = True) -> dict[str, Any]:
        outside = {"core_us": self.outside[0], "mib_us": self.outside[1]}
        return self.bill.as_json(with_costs=with_costs) | {
            "tenures": self.tenures,
            "gap_us": self.gap_us,
            "outside": outside,
        }


class MachineBooks:
    """Sorts lives and tenures into the time asked for, [begin_ns, end_ns) by the wall clock."""

    def __init__(self, connection: sqlite3.Connection, prices: PriceBook, begin_ns: int, end_ns: int) -> None:
        self.begin_ns = begin_ns
        self.end_ns = end_ns
        self._prices = prices
        self._borders_ns = sorted([begin_ns, end_ns, *prices.changes_ns()])
        self._connection = connection
        self._tally = MachineTally()
        self._outside_core_us = self._outside_mib_us = 0
        self._until_ns: dict[str, int] = {}
        recorded = {writer for (writer,) in connection.execute("SELECT DISTINCT writer FROM main.machine")}
        timelines = read_timelines(connection)
        # A journal from before tenures is billed as it was then.
        self._timelines = {writer: timelines[writer] for writer in recorded}

    def assigned_wall_ns(self, life: RecordedLife) -> int:
        timeline = self._timelines.get(life.writer)
        return life.assigned_wall_ns if timeline is None else timeline.wall_ns(life.assigned_mono_ns)

    def pieces(self, life: RecordedLife, bucket_ns: int = 0) -> Iterator[tuple[Span, Prices]]:
        """Yield the pieces of a life in this time, cut where prices or buckets change, and put them on the lines."""
        timeline = self._timelines.get(life.writer)
        self._until_ns[life.writer] = max(self._until_ns.get(life.writer, 0), life.last.mono_ns)
        for span in life.spans(timeline, self._borders_ns, bucket_ns):
            borders_ns = self._prices.changes_ns()
            if bucket_ns:
                borders_ns += multiples_between(span.begin_ns, span.end_ns, bucket_ns)
            for piece in pieces(span, borders_ns, self.begin_ns, self.end_ns):
                entry, parts = self._prices.at(piece.begin_ns), Parts(*piece.parts)
                core_us, mib_us = charged_core_us(life.cores, parts), life.memory_mib * parts.life_us
                if timeline is not None:
                    self._tally.add(DEPLOYMENTS, entry, core_us, mib_us)
                else:
                    self._outside_core_us += core_us
                    self._outside_mib_us += mib_us
                yield piece, entry

    def report(self, deployments_nano: int | None = None) -> MachineReport:
        """Return the machine's part, after all lives were taken in. `deployments_nano`: their cost on the bill."""
        shown: list[tuple[Tenure, int]] = []
        for tenure in read_tenures(self._connection, self._until_ns, self._timelines):
            elapsed_us = 0
            for span in tenure.spans(self._borders_ns):
                for piece in pieces(span, self._prices.changes_ns(), self.begin_ns, self.end_ns):
                    self._tally.add_tenure(tenure, piece, self._prices.at(piece.begin_ns))
                    elapsed_us += piece.parts[0]
            if elapsed_us:
                shown.append((tenure, elapsed_us))
        outside = (self._outside_core_us, self._outside_mib_us)
        gap_us = sum(_gap_ns(before, after) for (before, _), (after, _) in pairwise(shown)) // NS_PER_US
        tenures = [_tenure_json(tenure, elapsed_us) for tenure, elapsed_us in shown]
        return MachineReport(self._tally.bill(None if any(outside) else deployments_nano), tenures, gap_us, outside)


def _gap_ns(before: Tenure, after: Tenure) -> int:
    """Return the time between two tenures: of one boot by its monotonic clock, else by the wall clock."""
    if before.boot == after.boot:
        return max(0, after.started_mono_ns - before.until_mono_ns)
    begin_ns = before.timeline.wall_ns(before.until_mono_ns)
    return max(0, after.timeline.wall_ns(after.started_mono_ns) - begin_ns)


def _tenure_json(tenure: Tenure, elapsed_us: int) -> dict[str, Any]:
    return {
        "writer": tenure.writer,
        "begin_ns": tenure.timeline.wall_ns(tenure.started_mono_ns),
        "end_ns": tenure.timeline.wall_ns(tenure.until_mono_ns),
        "elapsed_us": elapsed_us,
        "cores": tenure.cores,
        "memory_mib": tenure.memory_mib,
        "ended": tenure.ended,
    }
