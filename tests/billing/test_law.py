"""The law under any story: requests, deaths, kills, torn tails, reboots, clocks that are set; to the integer."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import billing.journal
from billing.journal import Journal, journal_files
from billing.ledger import Ledger
from billing.prices import PriceBook, Prices
from billing.report import PARTS, Report, report
from billing.schema import DERIVED_TABLES
from billing.verify import verify
from serve.core.clock import NS_PER_S, VirtualClock
from tests.billing.replay import PRICES, Inside, Recorded, Tenured

BEGIN_NS = 1_700_000_000 * NS_PER_S
BOOK = PriceBook([PRICES, Prices(BEGIN_NS + 300 * NS_PER_S, "USD", 31_007, 1_913, 3)])
GROUPS = ["deployment", "revision", "label:team", "hour", "day"]
WEIGHTS = {"begin": 20, "ready": 10, "enter": 90, "answer": 90, "cancel": 8, "checkpoint": 16, "drain": 4, "exit": 8}
WEIGHTS |= {"die": 6, "probe": 6, "measure": 14, "set_clock": 8, "end": 2, "kill": 3, "reboot": 1, "ingest": 6}


def story(seed: int, length: int) -> list[tuple[str, int, float]]:
    """Return events, a number that each may use, and the seconds before it: from microseconds to minutes."""
    dice = random.Random(seed)
    events = dice.choices(list(WEIGHTS), list(WEIGHTS.values()), k=length)
    return [(event, dice.randrange(10**6), 10 ** dice.uniform(-6, 1.7)) for event in events]


class Home:
    """One home through the lives of several platforms, each on the machine alone."""

    def __init__(self, folder: Path) -> None:
        self.journal_folder, self.ledger = folder / "journal", folder / "ledger.db"
        self.boot, self.platforms = 1, 0
        self.clock = VirtualClock(10**12, BEGIN_NS)
        self._open()

    def _open(self) -> None:
        self.platforms += 1
        self.journal = Journal(self.journal_folder, f"w{self.platforms:07d}", self.clock)
        self.tenure = Tenured(self.journal, self.clock, cores=3, memory_mib=300)
        self.replicas: list[Recorded] = []
        self.inside: list[tuple[Recorded, Inside]] = []

    def happen(self, event: str, number: int) -> None:
        getattr(self, f"_{event}")(number)

    def finish(self) -> None:
        self.journal.flush()
        with closing(Ledger(self.ledger)) as ledger:
            ledger.ingest(self.journal_folder)

    def _pick(self, number: int) -> Recorded | None:
        return self.replicas[number % len(self.replicas)] if self.replicas else None

    def _begin(self, number: int) -> None:
        labels = {"team": "ab"[number % 2]} if number % 3 else {}
        self.replicas.append(Recorded(self.journal, self.clock, f"d{number % 4}", labels, memory_mib=40 + number % 100))

    def _ready(self, number: int) -> None:
        starting = [replica for replica in self.replicas if replica.account._ready_ns is None]
        if starting:
            starting[number % len(starting)].start(0)
        else:
            self._begin(number)

    def _enter(self, number: int) -> None:
        ready = [replica for replica in self.replicas if replica.account._ready_ns is not None]
        if ready:
            replica = ready[number % len(ready)]
            self.inside.append((replica, replica.metered.enter(1 + number % 7)))
        else:
            self._ready(number)

    def _answer(self, number: int) -> None:
        if self.inside:
            replica, request = self.inside.pop(number % len(self.inside))
            replica.answer(request, status=500 if number % 5 == 0 else 200)

    def _cancel(self, number: int) -> None:
        if self.inside:
            replica, request = self.inside.pop(number % len(self.inside))
            replica.metered.leave(request)

    def _probe(self, number: int) -> None:
        replica = self._pick(number)
        if replica is not None and replica.account._ready_ns is not None:
            replica.probe(0.001)

    def _checkpoint(self, number: int) -> None:
        for replica in self.replicas:
            replica.checkpoint()
        self.journal.flush()

    def _drain(self, number: int) -> None:
        if (replica := self._pick(number)) is not None:
            replica.drain()

    def _exit(self, number: int, reason: str = "drained") -> None:
        if (replica := self._pick(number)) is None:
            return
        inside = [request for owner, request in self.inside if owner is replica]
        self.inside = [entry for entry in self.inside if entry[0] is not replica]
        replica.exit(reason, min((request.entered_ns for request in inside), default=None))
        self.replicas.remove(replica)

    def _die(self, number: int) -> None:
        self._exit(number, "crashed")

    def _measure(self, number: int) -> None:
        for line in self.tenure.cpu_us:
            self.tenure.cpu_us[line] += number % 9_973
            self.tenure.held_mib[line] = number % 61
        self.tenure.write()

    def _set_clock(self, number: int) -> None:
        self.clock.step_wall((number % 2001 - 1000) * 3.7)

    def _end(self, number: int) -> None:
        while self.replicas:
            self._exit(0, "stopped")
        self.tenure.write(ended=True)
        self.journal.close()
        self.clock.advance(number % 100 / 7)
        self._open()

    def _kill(self, number: int) -> None:
        """What was not written is gone, and the last write may have stopped in the middle of a line."""
        file = self.journal_folder / self.journal.origin.writer / "00000001.jsonl"
        if number % 3:
            size = file.stat().st_size
            self.journal.flush()
            written = file.stat().st_size - size
            os.truncate(file, size + (number % (written + 1) if written else 0))
        os.close(self.journal._descriptor)
        self.journal._descriptor = -1
        self.clock.advance(number % 100 / 7)
        self._open()

    def _reboot(self, number: int) -> None:
        self._kill(number)
        os.close(self.journal._descriptor)
        (self.journal_folder / self.journal.origin.writer / "00000001.jsonl").unlink()
        self.boot += 1
        self.clock = VirtualClock(number * 1000, self.clock.wall_ns() + number * 1000)
        self._open()

    def _ingest(self, number: int) -> None:
        """Some files, up to somewhere, in whatever order; often again what is known."""
        dice = random.Random(number)
        files = journal_files(self.journal_folder)
        dice.shuffle(files)
        with closing(Ledger(self.ledger)) as ledger:
            for writer, name, path in files[: 1 + number % 3]:
                ledger.ingest(self.journal_folder, {(writer, name): dice.randint(0, path.stat().st_size)})


@contextmanager
def booting(home: list[Home]) -> Iterator[None]:
    """Give journals the boot id of their home's machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(billing.journal, "boot_id", lambda: f"boot-{home[0].boot if home else 1}")
        yield


def amounts(billed: Report) -> dict[str, Any]:
    """Return what must be the same however the rows are cut."""
    total = billed.total
    counts = {key: getattr(total, key) for key in ("requests", "charged", "probes", "rows", "cold_starts", "replicas")}
    return counts | {"core_us": total.core_us, "mib_us": total.mib_us}


def added(several: list[dict[str, Any]]) -> dict[str, Any]:
    first, *others = several
    sums = dict(first)
    for other in others:
        for key, value in other.items():
            if isinstance(value, dict):
                sums[key] = {part: sums[key][part] + value[part] for part in value}
            else:
                sums[key] += value
    return sums


def check_bills(ledger: Path, borders_ns: list[int]) -> None:
    whole = report(ledger, "deployment", None, None, BOOK)
    for by in GROUPS:
        other = report(ledger, by, None, None, BOOK)
        assert amounts(other) == amounts(whole)
        assert other.total.total_nano == whole.total.total_nano == sum(row.total_nano for row in other.rows)
    bounds = [None, *sorted({*borders_ns, *BOOK.changes_ns()}), None]
    periods = [report(ledger, "hour", *period, BOOK) for period in pairwise(bounds)]
    assert added([amounts(period) for period in periods]) == amounts(whole)
    assert sum(period.machine.bill.total.core_us for period in periods) == whole.machine.bill.total.core_us
    assert sum(period.machine.bill.total.mib_us for period in periods) == whole.machine.bill.total.mib_us
    for period in (whole, *periods):
        bill = period.machine.bill
        assert sum(line.core_us for line in bill.lines) == bill.total.core_us
        assert sum(line.mib_us for line in bill.lines) == bill.total.mib_us
        assert sum(line.cost_nano for line in bill.lines) == bill.total.cost_nano
        assert bill.lines[0].core_us == sum(period.total.core_us[part] for part in ("cold", "billed", "lost"))
        assert bill.lines[0].mib_us == sum(period.total.mib_us[part] for part in PARTS)
        assert bill.lines[0].cost_nano == period.total.total_nano - period.total.cost_nano["request"]


def content(ledger: Path) -> dict[str, Any]:
    with closing(Ledger(ledger)) as opened:
        tables = {table: list(opened.connection.execute(f"SELECT * FROM {table}")) for table in DERIVED_TABLES}
    return {table: sorted(map(repr, rows)) for table, rows in tables.items()}


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32),
    length=st.sampled_from([4, 40, 150, 400]),
    borders_ns=st.lists(st.integers(-2 * 10**12, 4 * 10**12), max_size=4),
)
def test_whatever_happens_to_a_home_every_sum_is_exact(
    tmp_path_factory: pytest.TempPathFactory, seed: int, length: int, borders_ns: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("home")
    known: list[Home] = []
    with booting(known):
        home = Home(folder)
        known.append(home)
        for event, number, seconds in story(seed, length):
            home.clock.advance(seconds)
            home.happen(event, number)
        home.finish()
    result = verify(home.ledger, home.journal_folder)
    assert result.problems == []
    again = folder / "again.db"
    with closing(Ledger(again)) as ledger:
        ledger.ingest(home.journal_folder)
    assert content(again) == content(home.ledger)
    check_bills(home.ledger, [BEGIN_NS + border for border in borders_ns])
    os.close(home.journal._descriptor)
