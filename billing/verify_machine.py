"""The law of the machine: all lines together are its resources × time, to the integer."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import pairwise

from billing.lines import DEPLOYMENTS, charged_core_us
from billing.lives import RecordedLife
from billing.machine_report import MachineBooks, MachineReport
from billing.prices import PriceBook, Prices
from billing.tenures import Tenure, read_tenures, read_timelines
from serve.core.clock import NS_PER_US

_NO_PRICES = PriceBook([Prices(0, "XXX", 0, 0, 0)])
_ALWAYS_NS = 1 << 62


class MachineProof:
    """Adds up lives one by one, on a way of its own, and compares with what the bill says."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._books = MachineBooks(connection, _NO_PRICES, -_ALWAYS_NS, _ALWAYS_NS)
        self._core_us = self._mib_us = 0
        self._first: dict[str, RecordedLife] = {}
        self.until_mono_ns: dict[str, int] = {}
        """The last instant known of each writer by its lives."""

    def add(self, life: RecordedLife) -> None:
        for _ in self._books.pieces(life):
            pass
        self._core_us += charged_core_us(life.cores, life.last.parts)
        self._mib_us += life.memory_mib * life.last.parts.life_us
        self.until_mono_ns[life.writer] = max(self.until_mono_ns.get(life.writer, 0), life.last.mono_ns)
        first = self._first.setdefault(life.writer, life)
        if life.assigned_mono_ns < first.assigned_mono_ns:
            self._first[life.writer] = life

    def conclude(self, problems: list[str]) -> MachineReport:
        """Return the machine's part of the whole bill; append what is wrong with it."""
        report = self._books.report()
        tenures = read_tenures(self._connection, self.until_mono_ns, read_timelines(self._connection))
        for tenure in tenures:
            problems += _broken_laws(tenure, self._first.get(tenure.writer))
            if self.until_mono_ns.get(tenure.writer, 0) > tenure.until_mono_ns:
                problems.append(f"{tenure.writer}: its tenure ends before its last known instant")
        problems += _overlaps(tenures)
        by_name = {line.name: line for line in report.bill.lines}
        for unit, place, ours, resources in (
            ("core·µs", 1, self._core_us, sum(t.cores * _elapsed_us(t) for t in tenures)),
            ("MiB·µs", 2, self._mib_us, sum(t.memory_mib * _elapsed_us(t) for t in tenures)),
        ):
            lines, total = sum(int(line[place]) for line in report.bill.lines), int(report.bill.total[place])
            if not lines == total == resources:
                problems.append(f"the machine's lines sum to {lines} {unit}, its total is {total}, it had {resources}")
            billed = int(by_name[DEPLOYMENTS][place]) + report.outside[place - 1]
            if billed != ours:
                problems.append(f"the bill gives deployments {billed} {unit}, their lives have {ours}")
        return report


def _elapsed_us(tenure: Tenure) -> int:
    return (tenure.until_mono_ns - tenure.started_mono_ns) // NS_PER_US


def _broken_laws(tenure: Tenure, first: RecordedLife | None) -> Iterator[str]:
    """Yield a sentence for each law that a tenure breaks; `first`: the life that its writer recorded first."""
    if min(tenure.known[0][1]) < 0:
        yield f"{tenure.writer}: something of its tenure is negative: {tenure.known[0][1]}"
    for (_, before), (_, after) in pairwise(tenure.known):
        if any(b < a for a, b in zip(before, after, strict=True)):
            yield f"{tenure.writer}: a sum of its tenure went back from {before} to {after}"
    if first is not None and first.assigned_mono_ns < tenure.started_mono_ns:
        yield f"{first.replica}: began before the tenure of its writer {tenure.writer}"


def _overlaps(tenures: list[Tenure]) -> Iterator[str]:
    """Yield a sentence for each two tenures of one boot that had the machine at once."""
    ordered = sorted(tenures, key=lambda tenure: (tenure.boot, tenure.started_mono_ns))
    for one, other in pairwise(ordered):
        if one.boot == other.boot and other.started_mono_ns < one.until_mono_ns:
            yield f"{other.writer}: its tenure began before that of {one.writer} had ended"
