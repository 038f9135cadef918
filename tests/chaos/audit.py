"""What the clients saw against what the ledger says: every single answer."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from billing.price_file import load_price_book
from billing.prices import Prices, round_half_even
from tests.chaos.clients import Attempt
from tests.e2e.platforms import RunningPlatform

_MOST_SENTENCES = 20
_VERIFY_TIMEOUT_S = 1800.0
_CLIENT_LEFT = 499

_ATTEMPTS = """CREATE TABLE attempts (client_id TEXT PRIMARY KEY, outcome TEXT, status INTEGER, request_id TEXT,
    replica TEXT, cost_nano INTEGER, start_ns INTEGER, end_ns INTEGER, problem TEXT) WITHOUT ROWID"""
_BOTH = """SELECT a.*, r.id, r.status AS ledger_status, r.replica AS ledger_replica, r.client_id AS ledger_client_id,
    r.charged, r.cores, r.memory_mib, r.busy_us + r.cold_us AS us, r.price
    FROM attempts a LEFT JOIN ledger.requests r ON r.id = a.request_id WHERE a.outcome = 'answered'"""
_EXTRAS = """SELECT r.id, r.writer, r.status, r.client_id, r.wall_ns, a.outcome, a.start_ns, a.end_ns
    FROM ledger.requests r LEFT JOIN attempts answered ON answered.request_id = r.id
    LEFT JOIN attempts a ON a.client_id = r.client_id
    WHERE answered.request_id IS NULL AND r.reason IS NOT 'probe'"""


@dataclass
class Audit:
    """What was found."""

    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Attempts by outcome, and records by what they are; see `table`."""
    in_flight_at_kill: list[int] = field(default_factory=list)
    """Attempts without an answer that were on their way when the platform was killed, per kill."""
    extras_at_kill: list[int] = field(default_factory=list)
    """Records of the same: written, and then the platform died before the client had its answer."""
    verified: dict[str, Any] = field(default_factory=dict)

    def complain(self, sentences: Iterable[str]) -> None:
        """Keep the first of the problems, and count all."""
        for sentence in sentences:
            self.counts["problems"] += 1
            if len(self.problems) < _MOST_SENTENCES:
                self.problems.append(sentence)


def audit(platform: RunningPlatform, logs: list[Path], platforms_ns: list[int]) -> Audit:
    """Compare the clients' logs with the ledger. `platforms_ns`: monotonic times at which the platform was killed."""
    found = Audit()
    answer = platform.api("GET", "/bill/verify", timeout=_VERIFY_TIMEOUT_S)
    assert answer.status_code == 200, answer.text
    found.verified = answer.json()
    found.complain(f"serve bill verify: {problem}" for problem in found.verified["problems"])
    compare(found, platform.home.ledger, logs, platforms_ns, load_price_book(platform.home.prices).entries)
    return found


def compare(found: Audit, ledger: Path, logs: list[Path], platforms_ns: list[int], prices: Iterable[Prices]) -> None:
    """Add to `found` what the logs and the ledger do not agree about."""
    with closing(sqlite3.connect("", uri=True)) as connection:  # on disk: a million attempts
        connection.row_factory = sqlite3.Row
        connection.execute(_ATTEMPTS)
        for log in logs:
            connection.executemany(f"INSERT INTO attempts VALUES ({','.join('?' * 9)})", _lines(log))
        connection.execute("CREATE INDEX answered ON attempts (request_id)")
        connection.commit()
        connection.execute("ATTACH ? AS ledger", (f"file:{ledger}?mode=ro",))
        for outcome, count in connection.execute("SELECT outcome, count(*) FROM attempts GROUP BY outcome"):
            found.counts[outcome] = count
        found.complain(_failures(connection, found))
        found.complain(_same_ids(connection))
        found.complain(_answered(connection, found, prices))
        found.complain(_extras(connection, found, platforms_ns))


def _lines(log: Path) -> Iterator[list[str]]:
    with log.open() as file:
        for line in file:
            yield line.rstrip("\n").split("\t")


def _failures(connection: sqlite3.Connection, found: Audit) -> Iterator[str]:
    for row in connection.execute("SELECT * FROM attempts WHERE problem <> ''"):
        found.counts["failed"] += 1
        yield f"{row['client_id']} failed: {row['problem']} ({row['request_id']}, {row['replica']})"


def _same_ids(connection: sqlite3.Connection) -> Iterator[str]:
    """The platform's ids are never given twice, restarts or not."""
    query = "SELECT request_id, count(*) AS n FROM attempts WHERE request_id <> '' GROUP BY request_id HAVING n > 1"
    for row in connection.execute(query):
        yield f"{row['n']} answers have the id {row['request_id']}"


def _answered(connection: sqlite3.Connection, found: Audit, entries: Iterable[Prices]) -> Iterator[str]:
    """Each answer of a replica is recorded with its id, status, replica and cost; a refusal costs nothing."""
    prices = {entry.version: entry for entry in entries}
    for row in connection.execute(_BOTH):
        name = f"{row['client_id']} ({row['request_id']})"
        if row["id"] is None:
            if row["replica"]:
                yield f"{name}: answered {row['status']} by {row['replica']}, and is not in the ledger"
            found.counts["refusals"] += 1
            continue
        found.counts["matched"] += 1
        ours: tuple[object, ...] = (row["status"], row["client_id"])
        theirs: tuple[object, ...] = (row["ledger_status"], row["ledger_client_id"])
        if row["replica"]:
            cost_nano = _cost_nano(row, prices[row["price"]]) if row["charged"] else 0
            ours += (row["replica"], row["cost_nano"])
            theirs += (row["ledger_replica"], cost_nano)
        elif row["charged"]:
            yield f"{name}: refused with {row['status']}, and charged"
        if ours != theirs:
            yield f"{name}: the answer said {ours}, the ledger says {theirs}"


def _cost_nano(row: sqlite3.Row, prices: Prices) -> int:
    us = row["us"]
    return round_half_even(prices.cost_numerator(row["cores"] * us, row["memory_mib"] * us, 1))


def _extras(connection: sqlite3.Connection, found: Audit, platforms_ns: list[int]) -> Iterator[str]:
    """Records without an answer belong to clients who left, or to attempts that a killed platform broke."""
    found.in_flight_at_kill = [_count_broken(connection, killed_ns) for killed_ns in platforms_ns]
    found.extras_at_kill = [0] * len(platforms_ns)
    for row in connection.execute(_EXTRAS):
        name = f"record {row['id']} of {row['client_id']}"
        if row["outcome"] == "left":
            found.counts["recorded_left"] += 1
            found.counts["recorded_499"] += row["status"] == _CLIENT_LEFT
            continue
        kills = [at for at, ns in enumerate(platforms_ns) if row["start_ns"] and row["start_ns"] < ns < row["end_ns"]]
        if row["outcome"] != "broken" or not kills:
            yield f"{name}: in the ledger with status {row['status']}, but its attempt is {row['outcome']}"
            continue
        found.counts["extras"] += 1
        found.extras_at_kill[kills[0]] += 1
    for extras, in_flight in zip(found.extras_at_kill, found.in_flight_at_kill, strict=True):
        if extras > in_flight:
            yield f"{extras} extra records at one kill, but only {in_flight} requests were in flight"
    repeated = (
        "SELECT client_id, count(*) AS n FROM ledger.requests WHERE client_id <> '' GROUP BY client_id HAVING n > 1"
    )
    for row in connection.execute(repeated):
        yield f"attempt {row['client_id']} is in the ledger {row['n']} times"


def _count_broken(connection: sqlite3.Connection, killed_ns: int) -> int:
    query = "SELECT count(*) FROM attempts WHERE outcome = 'broken' AND start_ns < ? AND end_ns > ?"
    return int(connection.execute(query, (killed_ns, killed_ns)).fetchone()[0])


assert len(Attempt._fields) == 9, "the table has the fields of an attempt"
