from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.attribute import Share
from billing.journal import Journal
from billing.ledger import Ledger
from billing.verify import Verification, verify
from serve.core.clock import VirtualClock
from tests.billing.replay import Inside, Recorded

EVENTS = ["enter", "answer", "cancel", "checkpoint", "drain"]


class Books:
    """A home's journal and ledger."""

    def __init__(self, folder: Path) -> None:
        self.clock = VirtualClock(10**12)
        self.folder = folder / "journal"
        self.ledger = folder / "ledger.db"
        self.journal = Journal(self.folder, "aaaaaaaa", self.clock)

    @property
    def file(self) -> Path:
        return self.folder / "aaaaaaaa" / "00000001.jsonl"

    def check(self) -> Verification:
        self.journal.flush()
        with closing(Ledger(self.ledger)) as ledger:
            ledger.ingest(self.folder)
        return verify(self.ledger, self.folder)

    def replica(self) -> Recorded:
        replica = Recorded(self.journal, self.clock)
        replica.start(0.03)
        replica.serve(0.004)
        return replica


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    opened = Books(tmp_path)
    yield opened
    opened.journal.close()


def test_honest_books_pass(books: Books) -> None:
    replica = books.replica()
    replica.serve(0.002, status=500)
    replica.drain()
    replica.exit()
    books.replica()
    result = books.check()
    assert (result.lives, result.requests, result.problems, result.notes) == (2, 3, [], [])
    assert result.as_json()["ok"] is True


def test_a_replica_that_died_at_work_is_noted_as_estimated(books: Books) -> None:
    replica = books.replica()
    inside = replica.metered.enter()
    books.clock.advance(0.5)
    replica.exit("crashed", inside.entered_ns)
    result = books.check()
    assert result.ok
    assert ["ended with requests inside" in note for note in result.notes] == [True]


def test_a_kill_of_the_platform_leaves_notes_and_no_problem(books: Books) -> None:
    replica = books.replica()
    replica.serve(0.01)
    books.journal.flush()
    with books.file.open("ab") as file:
        file.write(b'{"kind":"request","v":1,"id"')
    with closing(Journal(books.folder, "bbbbbbbb", books.clock)):
        result = books.check()
    assert result.problems == []
    assert [note.partition(": ")[2][:20] for note in result.notes] == [
        "its writer ended wit",
        "its last 28 bytes ar",
        "nobody knows whether",
    ]


def _request_paid_too_much(books: Books, replica: Recorded) -> None:
    replica.record(Share(1, 0))


def _request_without_a_life(books: Books, replica: Recorded) -> None:
    books.journal.flush()
    os.truncate(books.file, 0)
    replica.serve(0.1)


def _parts_do_not_sum(books: Books, replica: Recorded) -> None:
    replica.clock.advance(1)
    replica.drain()
    replica.clock.advance(1)
    replica.account._assigned_ns -= 5_000_000
    replica.exit()


def _cold_start_paid_twice(books: Books, replica: Recorded) -> None:
    replica.record(Share(0, 30_000))


def _recorded_twice(books: Books, replica: Recorded) -> None:
    replica.record(Share(0, 0), id="same")
    replica.record(Share(0, 0), id="same")


def _line_altered(books: Books, replica: Recorded) -> None:
    books.journal.flush()
    books.file.write_bytes(books.file.read_bytes().replace(b'"queue_us":10', b'"queue_us":11'))


def _ledger_edited(books: Books, replica: Recorded) -> None:
    books.check()
    with closing(Ledger(books.ledger)) as ledger:
        ledger.connection.execute("UPDATE requests SET rows = 7")


def _request_removed_from_ledger(books: Books, replica: Recorded) -> None:
    replica.record(Share(0, 0))
    books.check()
    with closing(Ledger(books.ledger)) as ledger:
        ledger.connection.execute("DELETE FROM requests WHERE busy_us = 0")


def _journal_removed(books: Books, replica: Recorded) -> None:
    books.check()
    books.file.unlink()


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (_request_paid_too_much, "its requests pay for 4001 µs, its life says 4000 µs"),
        (_request_without_a_life, "has requests, but no record of its life"),
        (_parts_do_not_sum, "cold + busy + idle + drain is 2039000 µs of a life of 2034000 µs"),
        (_cold_start_paid_twice, "its requests bear 60000 µs of a cold start of 30000 µs"),
        (_recorded_twice, "request same is recorded more than once"),
        (_line_altered, "the line was altered"),
        (_ledger_edited, "rows of requests that the journal lacks"),
        (_request_removed_from_ledger, "the ledger lacks 1 rows of requests"),
        (_journal_removed, "the journal no longer has them all"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_every_kind_of_harm_is_found_and_named(
    books: Books, harm: Callable[[Books, Recorded], None], sentence: str
) -> None:
    replica = books.replica()
    closes = harm in (_request_paid_too_much, _cold_start_paid_twice)
    harm(books, replica)
    if closes:
        replica.exit()
    result = books.check()
    assert not result.ok
    assert any(sentence in problem for problem in result.problems), result.problems


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 10**6))))
def test_whatever_happens_to_a_replica_its_books_are_in_order_at_every_moment(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[str, int]]
) -> None:
    books = Books(tmp_path_factory.mktemp("books"))
    replica = books.replica()
    inside: list[Inside] = []
    for event, elapsed_us in story:
        books.clock.advance(elapsed_us / 1e6)
        if event == "enter":
            inside.append(replica.metered.enter(1 + elapsed_us % 9))
        elif event == "answer" and inside:
            replica.answer(inside.pop(elapsed_us % len(inside)))
        elif event == "cancel" and inside:
            replica.metered.leave(inside.pop(elapsed_us % len(inside)))
        elif event == "checkpoint":
            replica.checkpoint()
        elif event == "drain":
            replica.drain()
    assert books.check().problems == []
    replica.exit("crashed", min((request.entered_ns for request in inside), default=None))
    assert books.check().problems == []
    books.journal.close()


def test_a_file_or_a_writer_that_is_gone_is_missed_by_a_ledger_that_never_knew_it(tmp_path: Path) -> None:
    clock, journal = VirtualClock(10**12), tmp_path / "journal"
    for writer in ("aaaaaaaa", "bbbbbbbb"):
        with closing(Journal(journal, writer, clock, file_bytes=1)) as opened:
            for _ in range(3):
                replica = Recorded(opened, clock)
                replica.start(0.03)
                replica.exit()
                opened.flush()
    files = sorted((journal / "aaaaaaaa").iterdir())
    assert len(files) == 5

    def problems() -> list[str]:
        (tmp_path / "ledger.db").unlink(missing_ok=True)
        with closing(Ledger(tmp_path / "ledger.db")) as ledger:
            ledger.ingest(journal)
        return verify(tmp_path / "ledger.db", journal).problems

    assert problems() == []
    files[2].unlink()
    assert problems() == ["aaaaaaaa: 1 of its journal's files before 00000004.jsonl are not there"]
    files[0].unlink()
    assert "aaaaaaaa: 1 of its journal's files before 00000002.jsonl are not there" in problems()
    shutil.rmtree(journal / "aaaaaaaa")
    assert problems() == ["aaaaaaaa: a later writer names it, but its journal is not there"]
