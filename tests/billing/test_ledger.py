from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from billing import records
from billing.attribute import Parts, Share
from billing.journal import Journal, journal_files
from billing.ledger import Ledger, open_read_only
from billing.lives import LifeState, RecordedLife, extended, read_lives
from billing.schema import DERIVED_TABLES, LedgerError, LedgerUnreadable
from serve.core.clock import VirtualClock
from tests.billing.replay import PRICES, Recorded


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(10**12)


@pytest.fixture
def journal(tmp_path: Path, clock: VirtualClock) -> Iterator[Journal]:
    with closing(Journal(tmp_path / "journal", "aaaaaaaa", clock, file_bytes=4000)) as opened:
        yield opened


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(Ledger(tmp_path / "ledger.db")) as opened:
        yield opened


def rows(ledger: Ledger) -> dict[str, list[Any]]:
    return {table: sorted(ledger.connection.execute(f"SELECT * FROM {table}")) for table in DERIVED_TABLES}


def lives(path: Path) -> list[RecordedLife]:
    with closing(open_read_only(path)) as connection:
        return list(read_lives(connection))


def whole_life(journal: Journal, clock: VirtualClock, requests: int = 20) -> Recorded:
    replica = Recorded(journal, clock, labels={"team": "vision"})
    replica.start(0.05)
    for _ in range(requests):
        replica.serve(0.001)
        clock.advance(5)
        replica.checkpoint()
    replica.drain()
    clock.advance(0.01)
    replica.exit()
    return replica


def test_every_record_is_taken_in_exactly_once_however_often_it_is_told(
    journal: Journal, clock: VirtualClock, ledger: Ledger, tmp_path: Path
) -> None:
    whole_life(journal, clock)
    journal.flush()
    count = ledger.ingest(tmp_path / "journal")
    assert count == 1 + 1 + 1 + 20 + 20 + 1 + 1
    before = rows(ledger)
    assert len(before["requests"]) == 20
    assert ledger.ingest(tmp_path / "journal") == 0
    ledger.connection.execute("DELETE FROM files")
    ledger.ingest(tmp_path / "journal")
    problems = rows(ledger).pop("problems")
    assert len(problems) == 20, "the second taking is noticed"
    assert rows(ledger) | {"problems": []} == before


def test_two_ledger_processes_at_once_take_in_every_record_once(
    journal: Journal, clock: VirtualClock, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_life(journal, clock)
    journal.flush()
    with closing(Ledger(tmp_path / "ledger.db")) as other:
        before = other.offsets()
        ledger.ingest(tmp_path / "journal")
        whole, offsets = rows(ledger), ledger.offsets()
        monkeypatch.setattr(other, "offsets", lambda: before)  # it had looked before the first one was done
        assert other.ingest(tmp_path / "journal") == 0
    assert rows(ledger) == whole
    assert ledger.offsets() == offsets
    assert not whole["problems"]


def test_only_what_is_new_is_read(journal: Journal, clock: VirtualClock, ledger: Ledger, tmp_path: Path) -> None:
    replica = Recorded(journal, clock)
    journal.flush()
    assert ledger.ingest(tmp_path / "journal") == 2
    replica.start(1)
    replica.serve(0.1)
    journal.flush()
    assert ledger.ingest(tmp_path / "journal") == 2


def test_a_closed_life_is_known_to_the_microsecond(
    journal: Journal, clock: VirtualClock, ledger: Ledger, tmp_path: Path
) -> None:
    replica = whole_life(journal, clock)
    journal.flush()
    ledger.ingest(tmp_path / "journal")
    (life,) = lives(tmp_path / "ledger.db")
    assert life.state is LifeState.CLOSED
    assert not life.estimated
    assert life.labels == {"team": "vision"}
    assert life.last.parts == replica.account.parts(0) == Parts(50_000, 20_000, 0, 100_000_000, 10_000)
    assert Parts(*map(sum, zip(*(span.parts for span in life.spans()), strict=True))) == life.last.parts


def test_a_life_keeps_one_state_a_minute(journal: Journal, clock: VirtualClock, ledger: Ledger, tmp_path: Path) -> None:
    replica = Recorded(journal, clock)
    replica.start(0.05)
    for _ in range(60):
        clock.advance(5)
        replica.checkpoint()
    journal.flush()
    ledger.ingest(tmp_path / "journal")
    (life,) = lives(tmp_path / "ledger.db")
    assert len(life.known) == 6
    assert life.last.parts.life_us == 300_050_000


def test_an_open_life_counts_up_to_its_last_answered_request(
    journal: Journal, clock: VirtualClock, ledger: Ledger, tmp_path: Path
) -> None:
    replica = Recorded(journal, clock)
    replica.start(0.05)
    replica.checkpoint()
    clock.advance(1)
    replica.serve(0.002)
    journal.flush()
    ledger.ingest(tmp_path / "journal")
    (life,) = lives(tmp_path / "ledger.db")
    assert life.state is LifeState.OPEN
    assert life.last.parts == Parts(50_000, 2000, 0, 1_000_000, 0)
    assert life.last.mono_ns == clock.monotonic_ns()


def test_a_life_whose_writer_is_gone_is_closed_at_its_last_known_instant_and_estimated(
    journal: Journal, clock: VirtualClock, ledger: Ledger, tmp_path: Path
) -> None:
    replica = Recorded(journal, clock)
    replica.start(0.05)
    replica.serve(0.002)
    clock.advance(5)
    replica.checkpoint()
    clock.advance(3)
    journal.flush()
    with closing(Journal(tmp_path / "journal", "bbbbbbbb", clock)):
        ledger.ingest(tmp_path / "journal")
    (life,) = lives(tmp_path / "ledger.db")
    assert life.state is LifeState.ABANDONED
    assert life.estimated
    assert life.last.parts == Parts(50_000, 2000, 0, 5_000_000, 0)


def test_the_order_in_which_writers_are_read_changes_nothing(tmp_path: Path, clock: VirtualClock) -> None:
    for writer in ("bbbbbbbb", "aaaaaaaa"):
        with closing(Journal(tmp_path / "journal", writer, clock)) as journal:
            whole_life(journal, clock, requests=3)
            Recorded(journal, clock)
    ledgers = [Ledger(tmp_path / f"{number}.db") for number in range(2)]
    ledgers[0].ingest(tmp_path / "journal")
    offsets = {(writer, name): path.stat().st_size for writer, name, path in journal_files(tmp_path / "journal")}
    for key, size in sorted(offsets.items(), reverse=True):
        ledgers[1].ingest(tmp_path / "journal", {key: size})
    assert rows(ledgers[0]) == rows(ledgers[1])
    for ledger in ledgers:
        ledger.close()


def test_a_corrupt_line_is_kept_as_a_problem_and_the_rest_is_taken_in(
    journal: Journal, clock: VirtualClock, ledger: Ledger, tmp_path: Path
) -> None:
    replica = Recorded(journal, clock)
    replica.start(1)
    replica.serve(0.1)
    replica.serve(0.1)
    journal.flush()
    path = tmp_path / "journal" / "aaaaaaaa" / "00000001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"rows":1', b'"rows":9')
    path.write_bytes(b"".join(lines))
    ledger.ingest(tmp_path / "journal")
    content = rows(ledger)
    assert len(content["requests"]) == 1
    assert [row[2:] for row in content["problems"]] == [
        (sum(map(len, lines[:3])), "the checksum does not match: the line was altered")
    ]


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"kind": "weather", "v": 1}, "unknown kind"),
        ({"v": 1}, "lacks a field"),
        ({"kind": "request", "v": 1, "id": "x"}, "request record lacks a field"),
        (
            {"kind": "checkpoint", "v": 1, "labels": {}, "mono_ns": "1", "assigned_mono_ns": 0},
            "checkpoint record lacks",
        ),
        ({"kind": "writer", "v": 1, "writer": {}, "boot": "b", "pid": 1, "wall_ns": 1}, "writer record lacks"),
        ({"kind": "writer", "v": 1, "writer": None, "boot": "b", "pid": 1, "wall_ns": 1, "gone": []}, "writer record"),
    ],
)
def test_a_sound_line_that_is_no_record_is_a_problem_not_a_crash(
    journal: Journal, ledger: Ledger, tmp_path: Path, record: dict[str, Any], sentence: str
) -> None:
    journal.append(records.encode(record))
    journal.flush()
    ledger.ingest(tmp_path / "journal")
    (problem,) = rows(ledger)["problems"]
    assert sentence in problem[3]


def test_the_second_record_of_a_request_id_is_a_problem(
    journal: Journal, clock: VirtualClock, ledger: Ledger, tmp_path: Path
) -> None:
    replica = Recorded(journal, clock)
    replica.start(1)
    request_id = replica.serve(0.1)
    replica.record(Share(5, 0), id=request_id)
    journal.flush()
    ledger.ingest(tmp_path / "journal")
    assert len(rows(ledger)["requests"]) == 1
    assert request_id in rows(ledger)["problems"][0][3]


def test_prices_are_kept_by_version(journal: Journal, ledger: Ledger, tmp_path: Path) -> None:
    journal.append(records.price(PRICES, journal.origin, mono_ns=1, wall_ns=2))
    journal.flush()
    ledger.ingest(tmp_path / "journal")
    assert rows(ledger)["prices"] == [(PRICES.version, 0, "USD", 24_000, 2_500, 7)]


def test_a_ledger_of_a_newer_program_is_refused_with_the_remedy(ledger: Ledger, tmp_path: Path) -> None:
    ledger.connection.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerError, match="upgrade servezero"):
        Ledger(tmp_path / "ledger.db")


def test_a_file_that_is_no_ledger_is_told_from_one_that_cannot_be_reached(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    path.write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(LedgerUnreadable, match="damaged"):
        Ledger(path)
    with pytest.raises(LedgerUnreadable, match="damaged"):
        open_read_only(path)
    with pytest.raises(LedgerError, match="make its folder writable"):
        Ledger(tmp_path / "missing" / "ledger.db")
    with pytest.raises(LedgerError, match="serve up"):
        open_read_only(tmp_path / "missing.db")


def test_readers_cannot_write_and_see_one_moment(
    journal: Journal, clock: VirtualClock, ledger: Ledger, tmp_path: Path
) -> None:
    with closing(open_read_only(tmp_path / "ledger.db")) as reader:
        whole_life(journal, clock)
        journal.flush()
        ledger.ingest(tmp_path / "journal")
        assert reader.execute("SELECT count(*) FROM requests").fetchone()[0] == 0
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.execute("DELETE FROM requests")


def test_bringing_a_checkpoint_up_to_date_keeps_every_part_whole() -> None:
    assert extended(Parts(10, 5, 3, 2, 0), busy_us=7, cold_us=10, until_us=25) == Parts(10, 7, 1, 7, 0)
    assert extended(Parts(10, 0, 0, 0, 0), busy_us=4, cold_us=12, until_us=20) == Parts(12, 4, 0, 4, 0)
    for values in itertools.product((0, 3), repeat=8):
        parts = extended(Parts(*values[:5]), *values[5:])
        assert min(parts) >= 0
        assert parts.life_us >= max(sum(values[:5]), values[7])
