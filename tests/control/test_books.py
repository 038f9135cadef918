"""Questions about money go to the real ledger, after it is up to date, and its errors are sentences."""

from __future__ import annotations

from pathlib import Path

import pytest

from billing.ledger import Ledger, derived_anew
from billing.prices import PriceBook
from serve.control.books import LedgerBooks
from serve.core.errors import BadRequest, ServeError
from tests.control.bench import PRICES


class Syncs:
    def __init__(self, error: Exception | None = None) -> None:
        self.count = 0
        self.rebuilds = 0
        self.ledger: Path | None = None
        self.error = error

    async def __call__(self, *, rebuild: bool = False) -> None:
        self.count += 1
        self.rebuilds += rebuild
        if self.error is not None:
            raise self.error
        if rebuild and self.ledger is not None:
            derived_anew(self.ledger).close()


def books(path: Path, syncs: Syncs) -> LedgerBooks:
    (path / "journal").mkdir()
    Ledger(path / "ledger.db").close()
    return LedgerBooks(syncs, path / "ledger.db", path / "journal", lambda: PriceBook([PRICES]))


async def test_each_question_syncs_first_and_is_answered_from_the_ledger(tmp_path: Path) -> None:
    syncs = Syncs()
    known = books(tmp_path, syncs)
    bill = await known.bill("deployment", None, None)
    assert (bill["by"], bill["currency"], bill["rows"], bill["total"]["cost_nano"]) == ("deployment", "USD", [], 0)
    assert (await known.bill_csv("day", 0, 10)).startswith("currency,")
    assert (await known.verify())["ok"] is True
    assert await known.request("nobody-1") is None
    assert syncs.count == 4


async def test_a_grouping_that_does_not_exist_is_a_bad_request(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="moon"):
        await books(tmp_path, Syncs()).bill("moon", None, None)


@pytest.mark.parametrize("error", [ConnectionError("the ledger ended"), TimeoutError()])
async def test_a_ledger_that_does_not_answer_is_said(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(ServeError, match="ask once more"):
        await books(tmp_path, Syncs(error)).verify()


async def test_a_ledger_that_is_found_damaged_is_derived_anew_and_the_question_answered(tmp_path: Path) -> None:
    syncs = Syncs()
    known = books(tmp_path, syncs)
    syncs.ledger = tmp_path / "ledger.db"
    syncs.ledger.write_bytes(b"no database" * 1000)
    assert (await known.verify())["ok"] is True
    assert (syncs.count, syncs.rebuilds) == (2, 1)
    assert (tmp_path / "ledger.db.damaged").exists()


async def test_a_ledger_that_stays_unreadable_is_said(tmp_path: Path) -> None:
    known = books(tmp_path, Syncs())
    (tmp_path / "ledger.db").write_bytes(b"no database" * 1000)
    with pytest.raises(ServeError, match="damaged"):
        await known.verify()


async def test_each_question_first_has_the_state_of_open_lives_written(tmp_path: Path) -> None:
    written = []
    known = books(tmp_path, Syncs())
    known._write_state = lambda: written.append(1)
    await known.bill("deployment", None, None)
    assert written == [1]
