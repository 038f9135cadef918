"""Journals of earlier programs are read and billed as they were: these files are from before tenures."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from billing.journal import Journal
from billing.ledger import Ledger
from billing.prices import PriceBook
from billing.reconcile import Counted, reconcile
from billing.report import report
from billing.verify import verify
from serve.core.clock import VirtualClock
from tests.billing.replay import PRICES, Recorded, Tenured

FOLDER = Path(__file__).parent / "fixtures" / "format1"
JOURNAL = FOLDER / "journal"


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    with closing(Ledger(tmp_path / "ledger.db")) as opened:
        opened.ingest(JOURNAL)
    return tmp_path / "ledger.db"


@pytest.mark.parametrize("by", ["deployment", "revision", "label:team", "hour", "day"])
def test_an_old_journal_is_billed_as_it_was(ledger: Path, by: str) -> None:
    billed = report(ledger, by, None, None, PriceBook([PRICES])).as_json()
    machine = billed.pop("machine")
    assert billed == json.loads((FOLDER / "bills.json").read_text())[by]
    assert machine["tenures"] == []
    assert machine["outside"]["mib_us"] == sum(
        billed["total"][f"{part}_mib_us"] for part in ("cold", "billed", "lost", "idle", "drain")
    )


def test_an_old_journal_keeps_the_law_and_its_kill_is_told(ledger: Path) -> None:
    result = verify(ledger, JOURNAL)
    assert result.problems == []
    assert (result.lives, result.requests) == (4, 18)
    assert [note.partition(": ")[0] for note in result.notes if "incomplete" in note] == ["aaaaaaaa/00000001.jsonl"]


def test_lives_that_no_kernel_figure_was_recorded_of_are_shown_without_one(ledger: Path) -> None:
    found = reconcile(ledger)
    assert [(one.counted, one.flags) for one in found] == [(Counted(None, None, None), [])] * 4


def test_a_writer_of_today_goes_on_in_the_same_journal(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    shutil.copytree(JOURNAL, folder)
    clock = VirtualClock(10**15)
    with closing(Journal(folder, "cccccccc", clock)) as journal:
        tenure = Tenured(journal, clock)
        replica = Recorded(journal, clock, "later")
        replica.start(1)
        replica.exit()
        tenure.write(ended=True)
    with closing(Ledger(tmp_path / "ledger.db")) as opened:
        opened.ingest(folder)
    result = verify(tmp_path / "ledger.db", folder)
    assert result.problems == []
    machine = result.machine.as_json()
    assert machine["outside"]["mib_us"] > 0
    assert [line["core_us"] for line in machine["lines"]] == [2_000_000, 0, 0, 0, 0, 2_000_000, 0]
