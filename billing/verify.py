"""`serve bill verify`: proves that the ledger obeys the law, and that it says what the journal says.

A problem is a broken law or damaged bytes; a note is what a kill leaves behind truthfully: estimated lives, torn tails.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from billing.journal import journal_files
from billing.kills import maybe_unsent, torn_tails
from billing.ledger import Ledger, reading
from billing.lives import LifeState, RecordedLife, read_lives
from billing.machine_report import MachineReport
from billing.schema import DERIVED_TABLES
from billing.verify_machine import MachineProof
from serve.core.clock import NS_PER_US

_MOST_SENTENCES = 1000
_OFFSETS = "SELECT writer, file, offset FROM main.files"
_SUMS = "SELECT replica, sum(busy_us), sum(cold_us), count(*) FROM main.requests GROUP BY replica"


@dataclass(frozen=True, slots=True)
class Verification:
    lives: int
    requests: int
    machine: MachineReport
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    maybe_unsent: list[str] = field(default_factory=list)
    """Ids of requests that a kill left recorded, while nobody knows whether their answers left."""

    @property
    def ok(self) -> bool:
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "lives": self.lives,
            "requests": self.requests,
            "problems": self.problems,
            "notes": self.notes,
            "maybe_unsent": self.maybe_unsent,
            "machine": self.machine.as_json(with_costs=False),
        }


def verify(ledger: Path, journal: Path) -> Verification:
    """Check the whole ledger against the law and against the journal it came from.

    Records the ledger has not taken in yet are not looked at: sync first. Raises LedgerError where it cannot be read.
    """
    problems: list[str] = []
    notes: list[str] = []
    with TemporaryDirectory(prefix="servezero-verify-") as folder:
        again = Path(folder) / "ledger.db"
        with closing(Ledger(again)) as derived, reading(ledger, again) as connection:
            limits = {(row["writer"], row["file"]): row["offset"] for row in connection.execute(_OFFSETS)}
            derived.ingest(journal, limits)
            proof = MachineProof(connection)
            lives, requests, abandoned = _check_lives(connection, proof, problems, notes)
            machine = proof.conclude(problems)
            problems += [
                f"{row['writer']}/{row['file']} at byte {row['offset']}: {row['sentence']}"
                for row in connection.execute("SELECT * FROM main.problems")
            ]
            problems += _missing_files(limits, derived.offsets())
            problems += _gaps(connection, journal)
            problems += _differences(connection)
            notes += torn_tails(connection, journal, limits)
            unsent = maybe_unsent(connection, proof.until_mono_ns, abandoned)
            notes += [_unsent_sentence(writer, ids) for writer, ids in unsent.items()]
    ids = [request_id for found in unsent.values() for request_id in found]
    return Verification(lives, requests, machine, problems[:_MOST_SENTENCES], notes[:_MOST_SENTENCES], ids)


def _check_lives(
    connection: sqlite3.Connection, proof: MachineProof, problems: list[str], notes: list[str]
) -> tuple[int, int, set[str]]:
    """Append what is wrong or remarkable with lives; return the number of lives, of requests, and killed writers."""
    sums = {replica: (busy_us, cold_us, count) for replica, busy_us, cold_us, count in connection.execute(_SUMS)}
    requests = sum(count for *_, count in sums.values())
    lives = 0
    abandoned: set[str] = set()
    for life in read_lives(connection):
        lives += 1
        proof.add(life)
        if life.state is LifeState.ABANDONED:
            abandoned.add(life.writer)
        busy_us, cold_us, _ = sums.pop(life.replica, (0, 0, 0))
        problems += _broken_laws(life, busy_us, cold_us)
        if life.estimated:
            notes.append(f"{life.replica}: {_why_estimated(life)}")
        if life.bounded:
            notes.append(
                f"{life.replica}: it reported figures that cannot be; they were bounded by what the platform saw"
            )
    problems += [f"{replica}: has requests, but no record of its life" for replica in sums]
    return lives, requests, abandoned


def _broken_laws(life: RecordedLife, busy_us: int, cold_us: int) -> Iterator[str]:
    """Yield a sentence for each law that `life` breaks; `busy_us`, `cold_us`: sums over its requests."""
    for known in life.known:
        life_us = (known.mono_ns - life.assigned_mono_ns) // NS_PER_US
        if known.parts.life_us != life_us:
            yield f"{life.replica}: cold + busy + idle + drain is {known.parts.life_us} µs of a life of {life_us} µs"
        if min(known.parts) < 0:
            yield f"{life.replica}: a part of its life is negative: {known.parts}"
    last = life.last.parts
    if busy_us != last.billed_us:
        yield f"{life.replica}: its requests pay for {busy_us} µs, its life says {last.billed_us} µs"
    if cold_us not in (0, last.cold_us):
        yield f"{life.replica}: its requests bear {cold_us} µs of a cold start of {last.cold_us} µs"


def _why_estimated(life: RecordedLife) -> str:
    if life.state is LifeState.ABANDONED:
        return "its writer ended without closing it; closed at its last known instant, estimated"
    return "it ended with requests inside; their time is estimated from when they were sent"


def _missing_files(limits: dict[tuple[str, str], int], read: dict[tuple[str, str], int]) -> Iterator[str]:
    for (writer, file), offset in sorted(limits.items()):
        if read.get((writer, file), 0) != offset:
            yield f"{writer}/{file}: the ledger holds {offset} bytes of it, the journal no longer has them all"


def _gaps(connection: sqlite3.Connection, journal: Path) -> Iterator[str]:
    """Yield a sentence for each stretch that must have been in the journal: the ledger can be derived without it."""
    written: defaultdict[str, list[int]] = defaultdict(list)
    for writer, file, _ in journal_files(journal):
        if (number := file.partition(".")[0]).isdecimal():
            written[writer].append(int(number))
    for writer, numbers in written.items():
        for before, after in pairwise([0, *numbers]):
            if (missing := after - before - 1) > 0:
                yield f"{writer}: {missing} of its journal's files before {after:08d}.jsonl are not there"
    for (writer,) in connection.execute("SELECT writer FROM main.gone ORDER BY writer"):
        if not (journal / writer).is_dir():
            yield f"{writer}: a later writer names it, but its journal is not there"


def _differences(connection: sqlite3.Connection) -> Iterator[str]:
    """Compare with the ledger derived anew up to the same offsets; yield a sentence for each difference."""
    for table in DERIVED_TABLES:
        for one, other, sentence in (
            ("derived", "main", "the ledger lacks {} rows of {} that the journal has"),
            ("main", "derived", "the ledger has {} rows of {} that the journal lacks"),
        ):
            query = f"SELECT count(*) FROM (SELECT * FROM {one}.{table} EXCEPT SELECT * FROM {other}.{table})"  # noqa: S608
            (count,) = connection.execute(query).fetchone()
            if count:
                yield sentence.format(count, table)


def _unsent_sentence(writer: str, ids: list[str]) -> str:
    return f"{writer} was killed when it wrote {', '.join(ids)}: nobody knows whether the answers left"
