"""After kill -9, `verify` names the requests that are recorded while nobody knows whether their answers left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from billing.journal import Journal
from billing.ledger import Ledger
from billing.verify import verify
from serve.core.clock import VirtualClock
from tests.billing.replay import Recorded, Tenured


class Killed:
    """A platform that is killed, and what the next one finds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ledger = folder / "journal", folder / "ledger.db"
        self.clock = VirtualClock(10**12)
        self.journal = Journal(self.folder, "aaaaaaaa", self.clock)
        self.tenure = Tenured(self.journal, self.clock)
        self.replica = Recorded(self.journal, self.clock)
        self.replica.start(1)

    def together(self) -> list[str]:
        """Two requests that answer in one read, and so in one write."""
        inside = [self.replica.metered.enter() for _ in range(2)]
        self.clock.advance(0.01)
        return [self.replica.answer(request) for request in inside]

    def maybe_unsent(self) -> list[str]:
        self.journal.flush()
        self.clock.advance(1)
        with closing(Journal(self.folder, "bbbbbbbb", self.clock)), closing(Ledger(self.ledger)) as ledger:
            ledger.ingest(self.folder)
        result = verify(self.ledger, self.folder)
        assert result.problems == []
        assert all(request_id in " ".join(result.notes) for request_id in result.maybe_unsent)
        return result.maybe_unsent


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Killed]:
    opened = Killed(tmp_path)
    yield opened
    opened.journal.close()


def test_those_of_the_last_write_are_named_and_none_before(killed: Killed) -> None:
    killed.together()
    last = killed.together()
    assert killed.maybe_unsent() == last


def test_a_later_record_shows_that_the_answers_left(killed: Killed) -> None:
    killed.together()
    killed.clock.advance(1)
    killed.replica.checkpoint()
    assert killed.maybe_unsent() == []


def test_a_platform_that_closed_its_books_leaves_no_doubt(killed: Killed) -> None:
    killed.together()
    killed.replica.exit()
    killed.tenure.write(ended=True)
    assert killed.maybe_unsent() == []


def test_a_platform_that_goes_on_leaves_no_doubt(killed: Killed) -> None:
    killed.together()
    killed.journal.flush()
    with closing(Ledger(killed.ledger)) as ledger:
        ledger.ingest(killed.folder)
    assert verify(killed.ledger, killed.folder).maybe_unsent == []
