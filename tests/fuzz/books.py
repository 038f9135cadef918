"""Targets: the journal's bytes, and the ledger and reports that are made of them."""

from __future__ import annotations

import atexit
import json
import shutil
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from billing import records
from billing.attribute import Parts
from billing.journal import Problem, read_journal_file
from billing.ledger import Ledger
from billing.lives import read_lives
from billing.price_file import PriceBookError, load_price_book
from billing.prices import PriceBook, Prices
from billing.report import report
from billing.verify import verify
from tests.fuzz.settings import check_sentence
from tests.fuzz.target import Target

_FOLDER = Path(mkdtemp(prefix="servezero-fuzz-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
_SUMMED = ("id", "busy_us", "cold_us")
_BOOK = PriceBook([Prices(0, "USD", 24_000, 2_500, 7)])


def journal(data: bytes) -> None:
    """First byte odd: each line is sealed with its checksum first, so that what it says is read.

    Every whole line is a record or a problem, at its place; the ledger takes the records once and sums just those.
    """
    if not data:
        return
    text = _sealed(data[1:]) if data[0] & 1 else data[1:]
    segment = _FOLDER / "journal" / "abcdefgh" / "00000001.jsonl"
    segment.parent.mkdir(parents=True, exist_ok=True)
    segment.write_bytes(text)
    entries = list(read_journal_file(segment))
    whole = text.split(b"\n")[:-1]
    ends = [end for _, end in entries]
    assert ends == [sum(len(line) + 1 for line in whole[: count + 1]) for count in range(len(whole))]
    for line, (entry, _) in zip(whole, entries, strict=True):
        if isinstance(entry, Problem):
            assert not _is_record(line), f"a good line was skipped: {entry.sentence}"
    path = _FOLDER / "ledger.db"
    for leftover in _FOLDER.glob("ledger.db*"):
        leftover.unlink()
    with closing(Ledger(path)) as ledger:
        assert ledger.ingest(_FOLDER / "journal") == len(whole)
        assert ledger.ingest(_FOLDER / "journal") == 0
        said = [tuple(entry.get(key) for key in _SUMMED) for entry, _ in entries if isinstance(entry, dict)]
        known = ledger.connection.execute("SELECT id, busy_us, cold_us FROM requests").fetchall()
        assert all(row in said for row in known)
        (problems,) = ledger.connection.execute("SELECT count(*) FROM problems").fetchone()
        assert problems + len(known) >= sum(map(_is_request, (entry for entry, _ in entries)))
        ledger.connection.row_factory = sqlite3.Row
        list(read_lives(ledger.connection))
    for by in ("label:team", "hour"):
        bill = report(path, by, None, None, _BOOK)
        bill.as_csv()
        json.dumps(bill.as_json())
        assert sum(row.total_nano for row in bill.rows) == bill.total.total_nano
    verify(path, _FOLDER / "journal")


def _is_request(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("kind") == "request" and isinstance(entry.get("id"), str)


def _sealed(text: bytes) -> bytes:
    """Return the lines with right checksums, whatever they say."""
    lines = []
    for line in text.split(b"\n")[:-1]:
        body = line[: -len(b',"crc":"00000000"}')]
        lines.append(b'%b,"crc":"%08x"}\n' % (body, zlib.crc32(body)))
    return b"".join(lines)


def _is_record(line: bytes) -> bool:
    """Say it in the simplest way: what the format's page says of a line."""
    body, mark, tail = line.rpartition(b',"crc":"')
    try:
        is_whole = tail[8:] == b'"}' and tail[:8] == b"%08x" % zlib.crc32(body) and bool(mark)
        return is_whole and json.loads(body + b"}").get("v") == records.VERSION
    except (ValueError, AttributeError, RecursionError):
        return False


def prices(data: bytes) -> None:
    """A price book is used as it stands, or refused with one sentence that names the file."""
    path = _FOLDER / "prices.yaml"
    path.write_bytes(data)
    try:
        book = load_price_book(path)
    except PriceBookError as error:
        check_sentence(error)
        return
    for entry in book.entries:
        assert min(entry.core_second_nano, entry.gib_second_nano, entry.request_nano, entry.effective_ns) >= 0


_ORIGIN = records.Origin("abcdefgh", "0f9c4c2e-boot")
_LIFE = records.Life("digits-r1-aaaaaaaa", "digits", 1, 2, 48, 1_000, 1_700_000_000_000_000_000, {"team": "vision"})


def _journal() -> bytes:
    ms = 1_000_000
    request = records.RequestLines(_LIFE, _ORIGIN).line(
        id="abcdefgh-1", mono_ns=90 * ms + 1000, wall_ns=_LIFE.assigned_wall_ns + 90 * ms, status=200, charged=True,
        reason=None, rows=1, batch_rows=1, queue_us=5, inside_us=50_000, cold_us=40_000, busy_us=50_000,
        infer_us=49_000, bytes_in=7, bytes_out=9, cold=True, price=_BOOK.entries[0].version,
    )  # fmt: skip
    at: dict[str, Any] = {"mono_ns": 1_000, "wall_ns": _LIFE.assigned_wall_ns}
    later: dict[str, Any] = {"mono_ns": 1_000 + 100 * ms, "wall_ns": _LIFE.assigned_wall_ns + 100 * ms}
    return b"".join(
        (
            records.writer(_ORIGIN, ["gonegone"], **at),
            records.price(_BOOK.entries[0], _ORIGIN, **at),
            records.checkpoint(_LIFE, _ORIGIN, Parts(0, 0, 0, 0, 0), **at),
            request,
            records.checkpoint(_LIFE, _ORIGIN, Parts(40_000, 50_000, 0, 10_000, 0), **later),
            records.segment(
                *(_LIFE, _ORIGIN, Parts(40_000, 50_000, 0, 10_000, 0)),
                part="run",
                exit_reason="drained",
                **later,
            ),
        )
    )


_PRICES = b"""prices:
  - from: 2026-01-31
    currency: USD
    core_second: 24000
    gib_second: 2500
    request: 7
  - {from: "2026-03-01T12:00:00Z", currency: USD}
"""

TARGETS = (
    Target(
        "journal",
        journal,
        (b"\x00" + _journal(), b"\x01" + _journal(), b"\x00" + _journal()[:-7], b"\x01" + _journal() * 2),
        ("billing",),
        (
            *(
                b"\n",
                b'"id":',
                b'"labels":',
                b'"kind":"price"',
                b'"kind":"segment"',
                b'"gone":',
                b'"mono_ns":',
                b"null",
            ),
            *(b"-1", b"1e308", b"9223372036854775808", b"18446744073709551615", b"0.5", b"[]", b"{}", b'"x"', b"true"),
        ),
    ),
    Target(
        "prices",
        prices,
        (_PRICES, b"prices: []\n", b""),
        ("billing",),
        (b"&a", b"*a", b"- ", b".inf", b".nan", b"2200-01-01", b"!!binary", b"[" * 64, b"{" * 64, b"0x7f", b"\x00"),
    ),
)
