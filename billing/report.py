"""What it cost: the bill by deployment, revision, label, hour or day, and the cost of one request.

Everything is computed from the ledger when asked for. All cells of a report are rounded together, so that rows and
columns sum to the printed total exactly.
"""

from __future__ import annotations

import csv
import io
import itertools
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from billing.grouping import Grouping
from billing.ledger import reading
from billing.lives import RecordedLife, read_lives
from billing.machine_report import MachineBooks, MachineReport
from billing.prices import PriceBook, Prices, apportion

PARTS = ("cold", "billed", "lost", "idle", "drain")
_CORES_CHARGED = frozenset({"cold", "billed", "lost"})
"""Idle and drain charge memory only."""
_FEE = "request"
_EARLIEST_NS, _LATEST_NS = -(1 << 62), 1 << 62
"""Bounds of every question: SQLite's integers have 64 bits, and people write dates like 9999-12-31."""
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")

_REQUESTS = """
    SELECT requests.deployment, requests.revision, coalesce(lives.labels, '{}') AS labels,
           requests.wall_ns / :bucket_ns * :bucket_ns AS wall_ns,
           sum(reason IS NOT 'probe') AS requests, sum(charged) AS charged, sum(reason IS 'probe') AS probes,
           sum(iif(reason IS 'probe', 0, rows)) AS rows, sum(cold AND reason IS NOT 'probe') AS cold_starts
    FROM requests LEFT JOIN lives USING (replica)
    WHERE requests.wall_ns >= :begin_ns AND requests.wall_ns < :end_ns GROUP BY 1, 2, 3, 4"""


@dataclass(slots=True)
class Row:
    """One line of a report. `group` None: without that label. Resource-time is granted cores, MiB × µs."""

    group: str | None
    requests: int = 0
    charged: int = 0
    probes: int = 0
    """Inferences of the platform's own, such as those that verify and measure a deploy: no caller's requests."""
    rows: int = 0
    cold_starts: int = 0
    """Requests that waited for a replica to start."""
    replicas: int = 0
    """Lives begun."""
    core_us: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    mib_us: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    cost_nano: dict[str, int] = field(default_factory=dict)
    """By part, and `request` for the fees."""

    @property
    def total_nano(self) -> int:
        return sum(self.cost_nano.values())

    def as_json(self) -> dict[str, Any]:
        """Return the flat form, keys in a fixed order."""
        flat: dict[str, Any] = {
            "group": self.group,
            "requests": self.requests,
            "charged": self.charged,
            "uncharged": self.requests - self.charged,
            "probes": self.probes,
            "rows": self.rows,
            "cold_starts": self.cold_starts,
            "replicas": self.replicas,
        }
        flat |= {f"{part}_core_us": self.core_us[part] for part in PARTS}
        flat |= {f"{part}_mib_us": self.mib_us[part] for part in PARTS}
        flat |= {f"{part}_cost_nano": self.cost_nano[part] for part in (*PARTS, _FEE)}
        return flat | {"cost_nano": self.total_nano}


@dataclass(frozen=True, slots=True)
class Report:
    by: str
    since_ns: int | None
    until_ns: int | None
    currency: str
    rows: list[Row]
    total: Row
    machine: MachineReport

    def as_json(self) -> dict[str, Any]:
        return {
            "by": self.by,
            "since_ns": self.since_ns,
            "until_ns": self.until_ns,
            "currency": self.currency,
            "rows": [row.as_json() for row in self.rows],
            "total": self.total.as_json(),
            "machine": self.machine.as_json(),
        }

    def as_csv(self) -> str:
        """Return a header and the rows, without the total: columns can be summed.

        A label value that a spreadsheet would run as a formula has an apostrophe before it.
        """
        text = io.StringIO()
        columns = ["currency", *self.total.as_json()]
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {"currency": self.currency} | row.as_json() | {"group": _as_text(row.group)} for row in self.rows
        )
        return text.getvalue()


def _as_text(group: str | None) -> str | None:
    return f"'{group}" if group and group.startswith(_FORMULA_STARTS) else group


class _Tally:
    """One group's row while it is summed, and its exact costs."""

    def __init__(self) -> None:
        self.row = Row(None)
        self.numerators = dict.fromkeys((*PARTS, _FEE), 0)


def report(ledger: Path, by: str, since_ns: int | None, until_ns: int | None, prices: PriceBook) -> Report:
    """Return the bill of [since_ns, until_ns) of wall time; None = without that limit.

    `by`: deployment, revision, label:KEY, hour or day (UTC). Raises ValueError for another `by`, LedgerError where the
    ledger cannot be read.
    """
    grouping = Grouping.parse(by)
    begin_ns = _EARLIEST_NS if since_ns is None else max(_EARLIEST_NS, min(since_ns, _LATEST_NS))
    end_ns = _LATEST_NS if until_ns is None else max(_EARLIEST_NS, min(until_ns, _LATEST_NS))
    tallies: defaultdict[str | None, _Tally] = defaultdict(_Tally)
    with reading(ledger) as connection:
        machine = MachineBooks(connection, prices, begin_ns, end_ns)
        for life in read_lives(connection):
            _add_life(tallies, grouping, life, machine)
        for period_begin_ns, period_end_ns, entry in _price_periods(prices, begin_ns, end_ns):
            _add_requests(tallies, grouping, connection, period_begin_ns, period_end_ns, entry)
        rows = _rounded(tallies)
        total = _total(rows)
        return Report(
            by,
            since_ns,
            until_ns,
            prices.currency,
            rows,
            total,
            machine.report(total.total_nano - total.cost_nano[_FEE]),
        )


def request(ledger: Path, request_id: str) -> dict[str, Any] | None:
    """Return one request's record with its labels and cost, or None where the ledger does not have it.

    Priced by the version on the record: `cost_nano` = `cold_cost_nano` + `busy_cost_nano` + `request_cost_nano`, all
    None where that price is not in the ledger; `charged_nano` is 0 where the request is not charged.
    """
    with reading(ledger) as connection:
        found = connection.execute(
            "SELECT requests.*, coalesce(lives.labels, '{}') AS labels FROM requests LEFT JOIN lives USING (replica) "
            "WHERE id = ?",
            (request_id,),
        ).fetchone()
        if found is None:
            return None
        price = connection.execute("SELECT * FROM prices WHERE version = ?", (found["price"],)).fetchone()
    record = dict(found) | {"labels": orjson.loads(found["labels"])}
    for flag in ("charged", "cold"):
        record[flag] = bool(record[flag])
    return record | _request_cost(record, price)


def _request_cost(record: dict[str, Any], price: sqlite3.Row | None) -> dict[str, Any]:
    keys = ("cold_cost_nano", "busy_cost_nano", "request_cost_nano")
    if price is None:
        return dict.fromkeys((*keys, "cost_nano", "charged_nano", "currency"))
    entry = Prices(
        price["effective_ns"],
        price["currency"],
        price["core_second_nano"],
        price["gib_second_nano"],
        price["request_nano"],
    )
    cores, mib = record["cores"], record["memory_mib"]
    used = [entry.cost_numerator(cores * record[key], mib * record[key]) for key in ("cold_us", "busy_us")]
    costs = apportion([*used, entry.cost_numerator(0, 0, int(record["charged"]))])
    total = sum(costs)
    charged = {"charged_nano": total if record["charged"] else 0, "currency": entry.currency}
    return dict(zip(keys, costs, strict=True)) | {"cost_nano": total} | charged


def _add_life(
    tallies: defaultdict[str | None, _Tally], grouping: Grouping, life: RecordedLife, machine: MachineBooks
) -> None:
    def tally(wall_ns: int) -> _Tally:
        return tallies[grouping.key(life.deployment, life.revision, life.labels, wall_ns)]

    assigned_ns = machine.assigned_wall_ns(life)
    if machine.begin_ns <= assigned_ns < machine.end_ns:
        tally(assigned_ns).row.replicas += 1
    for piece, entry in machine.pieces(life, grouping.bucket_ns):
        target = tally(piece.begin_ns)
        for part, us in zip(PARTS, piece.parts, strict=True):
            core_us, mib_us = life.cores * us, life.memory_mib * us
            target.row.core_us[part] += core_us
            target.row.mib_us[part] += mib_us
            charged_core_us = core_us if part in _CORES_CHARGED else 0
            target.numerators[part] += entry.cost_numerator(charged_core_us, mib_us)


def _add_requests(
    tallies: defaultdict[str | None, _Tally],
    grouping: Grouping,
    connection: sqlite3.Connection,
    begin_ns: int,
    end_ns: int,
    entry: Prices,
) -> None:
    bounds = {"begin_ns": begin_ns, "end_ns": end_ns, "bucket_ns": grouping.bucket_ns or _LATEST_NS}
    for sums in connection.execute(_REQUESTS, bounds):
        labels = orjson.loads(sums["labels"])
        tally = tallies[grouping.key(sums["deployment"], sums["revision"], labels, sums["wall_ns"])]
        for column in ("requests", "charged", "probes", "rows", "cold_starts"):
            setattr(tally.row, column, getattr(tally.row, column) + sums[column])
        tally.numerators[_FEE] += entry.cost_numerator(0, 0, sums["charged"])


def _price_periods(prices: PriceBook, begin_ns: int, end_ns: int) -> Iterator[tuple[int, int, Prices]]:
    inner_ns = [change for change in prices.changes_ns() if begin_ns < change < end_ns]
    borders_ns = [begin_ns, *inner_ns, end_ns]
    for period_begin_ns, period_end_ns in itertools.pairwise(borders_ns):
        yield period_begin_ns, period_end_ns, prices.at(period_begin_ns)


def _rounded(tallies: dict[str | None, _Tally]) -> list[Row]:
    groups = sorted(tallies, key=lambda group: (group is None, group or ""))
    cells = [(group, part) for group in groups for part in (*PARTS, _FEE)]
    costs = apportion([tallies[group].numerators[part] for group, part in cells])
    for (group, part), cost in zip(cells, costs, strict=True):
        row = tallies[group].row
        row.group = group
        row.cost_nano[part] = cost
    return [tallies[group].row for group in groups]


def _total(rows: list[Row]) -> Row:
    total = Row(None, cost_nano=dict.fromkeys((*PARTS, _FEE), 0))
    for row in rows:
        for column in ("requests", "charged", "probes", "rows", "cold_starts", "replicas"):
            setattr(total, column, getattr(total, column) + getattr(row, column))
        for sums, parts in ((total.core_us, row.core_us), (total.mib_us, row.mib_us), (total.cost_nano, row.cost_nano)):
            for part, value in parts.items():
                sums[part] += value
    return total
