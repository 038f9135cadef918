"""Charged beside used: what the kernel counted is shown for every life, and what cannot be right is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from billing.journal import Journal
from billing.ledger import Ledger
from billing.machine import ZYGOTE
from billing.reconcile import Reconciled, as_json, reconcile
from billing.records import Used
from serve.core.clock import VirtualClock
from serve.core.kernel import OwnMemory
from tests.billing.replay import Recorded, Tenured


class Books:
    def __init__(self, folder: Path) -> None:
        self.folder, self.ledger = folder / "journal", folder / "ledger.db"
        self.clock = VirtualClock(10**12)
        self.journal = Journal(self.folder, "aaaaaaaa", self.clock)
        self.tenure = Tenured(self.journal, self.clock)
        self.tenure.held_mib[ZYGOTE] = 30
        self.clock.advance(1)
        self.tenure.write()
        self.replica = Recorded(self.journal, self.clock, memory_mib=48)
        self.replica.start(1)
        self.replica.serve(1)

    def compared(self, memory: OwnMemory | None = None, group_us: int | None = None) -> Reconciled:
        self.journal.flush()
        with closing(Ledger(self.ledger)) as ledger:
            ledger.ingest(self.folder)
        (found,) = reconcile(self.ledger, lambda _: memory, lambda _: group_us)
        return found


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    opened = Books(tmp_path)
    yield opened
    opened.journal.close()


def test_an_ended_life_shows_what_its_exit_told(books: Books) -> None:
    books.replica.checkpoint(Used(900_000, 90, 60))
    books.replica.exit(used=Used(1_500_000, 99))
    found = books.compared()
    assert found.as_json() == {
        "replica": books.replica.life.replica,
        "state": "closed",
        "granted_core_us": 4_000_000,
        "kernel_cpu_us": 1_500_000,
        "ratio": 0.375,
        "charged_mib": 48,
        "kernel_own_mib": 30,
        "kernel_peak_rss_mib": 99,
        "discrepancy_core_us": 2_500_000,
        "discrepancy_mib": 18,
        "flags": [],
    }
    assert as_json([found])["total"] == {
        "granted_core_us": 4_000_000,
        "kernel_cpu_us": 1_500_000,
        "unknown": 0,
        "flagged": 0,
    }


@pytest.mark.parametrize(("cpu_us", "is_flagged"), [(4_130_000, False), (4_130_001, True)])
def test_more_processor_time_than_was_granted_is_named_beyond_the_tolerance(
    books: Books, cpu_us: int, is_flagged: bool
) -> None:
    books.replica.exit(used=Used(cpu_us, 99))
    flags = books.compared().flags
    assert bool(flags) is is_flagged
    assert all("threads spin" in flag for flag in flags)


@pytest.mark.parametrize(("anon_mib", "is_flagged"), [(79, False), (80, True)])
def test_an_ended_life_that_surely_held_more_than_it_was_charged_for_is_named(
    books: Books, anon_mib: int, is_flagged: bool
) -> None:
    books.replica.checkpoint(Used(0, 200, anon_mib))
    books.replica.checkpoint(Used(0, 200, 31))
    books.replica.exit(used=Used(0, 200))
    assert bool(books.compared().flags) is is_flagged


def test_a_live_replica_is_looked_at_again(books: Books) -> None:
    books.replica.checkpoint(Used(100, 99, 31), pid=4711)
    found = books.compared(OwnMemory(40 << 20, 70 << 20), 777)
    assert (found.counted.own_mib, found.counted.cpu_us) == (70, 777)
    assert ["held 70 MiB of its own, and is charged for 48" in flag for flag in found.flags] == [True]


def test_nobody_looked_is_told_from_nothing_used(books: Books) -> None:
    books.replica.exit()
    found = books.compared()
    assert (found.counted.cpu_us, found.as_json()["ratio"], found.flags) == (None, None, [])
    assert as_json([found])["total"]["unknown"] == 1
