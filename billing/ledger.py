"""The ledger: the journal in SQLite, so that it can be asked. Written by one process, read by many.

Ingest is idempotent: offset and records of a stretch of journal enter in one transaction, and records have ids made by
the server. Two processes at once disturb nothing: each looks, in the transaction, how far the other came. Totals are
computed when asked for, never incremented.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from billing.journal import Problem, journal_files, read_journal_file
from billing.schema import LedgerError, LedgerUnreadable, is_damage, prepare, set_aside

_RECORDS_PER_TRANSACTION = 1000
_NS_PER_MINUTE = 60_000_000_000

_REQUEST = """INSERT INTO requests VALUES (
    :id, :wall_ns, :mono_ns, :writer, :deployment, :revision, :replica, :status, :charged, :reason, :rows, :batch_rows,
    :queue_us, :inside_us, :cold_us, :busy_us, :infer_us, :bytes_in, :bytes_out, :cores, :memory_mib, :cold, :price,
    :client_id, :trace_id) ON CONFLICT (id) DO NOTHING"""
_LIFE = """INSERT INTO lives VALUES (:replica, :writer, :deployment, :revision, :labels, :cores, :memory_mib,
    :assigned_mono_ns, :assigned_wall_ns, :pid) ON CONFLICT (replica) DO UPDATE SET memory_mib = excluded.memory_mib,
    pid = coalesce(excluded.pid, pid)"""
# The memory of a revision's first replica is an estimate until it is measured: the last word counts for the whole life.
# A life has one writer, and a writer's records are taken in in their order: the later state is the newer.
_STATE = """INSERT INTO states VALUES (:replica, :minute, :mono_ns, :cold_us, :billed_us, :lost_us, :idle_us, :drain_us,
    :exit_reason, :estimated, :bounded, :cpu_us, :peak_rss_mib, :anon_mib)
    ON CONFLICT (replica, minute) DO UPDATE SET mono_ns = excluded.mono_ns, cold_us = excluded.cold_us,
        billed_us = excluded.billed_us, lost_us = excluded.lost_us, idle_us = excluded.idle_us,
        drain_us = excluded.drain_us, exit_reason = excluded.exit_reason, estimated = excluded.estimated,
        bounded = excluded.bounded, cpu_us = coalesce(excluded.cpu_us, cpu_us),
        peak_rss_mib = coalesce(excluded.peak_rss_mib, peak_rss_mib),
        anon_mib = max(coalesce(excluded.anon_mib, anon_mib), coalesce(anon_mib, excluded.anon_mib))"""
_MACHINE = """INSERT OR REPLACE INTO machine VALUES (:writer, :mono_ns, :started_mono_ns, :cores, :memory_mib,
    :platform_cpu_us, :platform_mib_us, :platform_mib, :zygote_cpu_us, :zygote_mib_us, :zygote_mib, :ended)"""
_SHIFT = "SELECT wall_ns - mono_ns FROM moments WHERE writer = ? ORDER BY mono_ns DESC LIMIT 1"
_MOMENT = "INSERT INTO moments VALUES (:writer, :mono_ns, :wall_ns) ON CONFLICT (writer, mono_ns) DO NOTHING"
_STEP_NS = 1_000_000_000
"""The wall clock has been set, or has drifted so far, when it is this far from where it was."""
_ADDED_LATER = {"exit_reason": None, "estimated": False, "bounded": False} | dict.fromkeys(
    ("pid", "cpu_us", "peak_rss_mib", "anon_mib")
)
"""Of a life's records: what some kinds, or older programs, do not write."""
_PRICE = """INSERT INTO prices VALUES (:version, :effective_ns, :currency, :core_second_nano, :gib_second_nano,
    :request_nano) ON CONFLICT (version) DO NOTHING"""
_WRITER = "INSERT INTO writers VALUES (:writer, :boot, :pid, :wall_ns) ON CONFLICT (writer) DO NOTHING"
_GONE = "INSERT INTO gone VALUES (?) ON CONFLICT (writer) DO NOTHING"
_PROBLEM = "INSERT INTO problems VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
_TAKEN = "SELECT offset FROM files WHERE writer = ? AND file = ?"
_OFFSET = "INSERT INTO files VALUES (?, ?, ?) ON CONFLICT (writer, file) DO UPDATE SET offset = excluded.offset"

_BAD_RECORD = (
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    sqlite3.IntegrityError,
    OverflowError,
    KeyError,
    TypeError,
)
"""What a well-formed line with missing or odd fields leads to; all else is the ledger's own trouble."""


class Ledger:
    """A ledger open for writing. Owned by one thread of one process, the ledger process.

    Raises LedgerError where it cannot be opened, LedgerUnreadable where `derived_anew` can help.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.connection = sqlite3.connect(path, isolation_level=None, timeout=30)
            try:
                self.connection.execute("PRAGMA journal_mode = WAL")
                self.connection.execute("PRAGMA synchronous = NORMAL")
                prepare(self.connection)
            except BaseException:
                self.connection.close()
                raise
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                raise LedgerUnreadable(f"the ledger {path} is damaged ({error})") from error
            raise LedgerError(f"the ledger {path} cannot be opened ({error}): make its folder writable") from error
        self._path = path
        self._file = _file_at(path)
        self._apply: dict[str, Callable[[dict[str, Any]], str | None]] = {
            "request": self._request,
            "checkpoint": self._life,
            "segment": self._life,
            "machine": self._machine,
            "price": self._price,
            "writer": self._writer,
        }

    def ingest(self, journal: Path, limits: Mapping[tuple[str, str], int] | None = None) -> int:
        """Take in all that the journal holds beyond the stored offsets; return the number of new records.

        `limits` = {(writer, file): offset} stops at those offsets, for comparing with another ledger. Raises
        LedgerError when the ledger cannot be written; what was taken in until then stays, the rest comes next time.
        """
        try:
            offsets = self.offsets()
            count = 0
            for writer, file, path in journal_files(journal):
                offset = offsets.get((writer, file), 0)
                end = path.stat().st_size if limits is None else limits.get((writer, file), 0)
                if end > offset:
                    count += self._ingest_file(writer, file, path, offset, end)
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                raise LedgerUnreadable(f"the ledger is damaged ({error})") from error
            raise LedgerError(f"the ledger cannot be written ({error}): free space on its disk") from error
        return count

    def offsets(self) -> dict[tuple[str, str], int]:
        """Return {(writer, file): bytes taken in}."""
        rows = self.connection.execute("SELECT writer, file, offset FROM files")
        return {(writer, file): offset for writer, file, offset in rows}

    def is_in_place(self) -> bool:
        """Return whether readers find this ledger: not where somebody deleted it, or moved it, or set it aside."""
        return self._file is not None and _file_at(self._path) == self._file

    def close(self) -> None:
        self.connection.close()

    def _ingest_file(self, writer: str, file: str, path: Path, offset: int, end: int) -> int:
        count = 0
        entries = itertools.takewhile(lambda entry: entry[1] <= end, read_journal_file(path, offset))
        while batch := list(itertools.islice(entries, _RECORDS_PER_TRANSACTION)):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                # The ledger process of a platform that was killed may still be taking in the same file.
                taken = self._offset(writer, file)
                for record, end_of_line in batch:
                    begin, offset = offset, end_of_line
                    if offset <= taken:
                        continue
                    sentence = record.sentence if isinstance(record, Problem) else self._take(record)
                    if sentence is not None:
                        self.connection.execute(_PROBLEM, (writer, file, begin, sentence))
                    count += 1
                self.connection.execute(_OFFSET, (writer, file, max(offset, taken)))
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # a full disk has rolled back already
                    self.connection.execute("ROLLBACK")
                raise
        return count

    def _offset(self, writer: str, file: str) -> int:
        row = self.connection.execute(_TAKEN, (writer, file)).fetchone()
        return 0 if row is None else int(row[0])

    def _take(self, record: dict[str, Any]) -> str | None:
        """Store one record; return a sentence where it is none that can be stored."""
        try:
            apply = self._apply.get(record["kind"])
            if apply is None:
                return f"unknown kind of record: {record['kind']!r}"
            return apply(record)
        except _BAD_RECORD as error:
            return f"a {record.get('kind')} record lacks a field or has an odd value: {error}"

    def _request(self, record: dict[str, Any]) -> str | None:
        if self.connection.execute(_REQUEST, {"inside_us": None} | record).rowcount == 0:
            return f"request {record['id']} is recorded more than once; only its first record counts"
        return None

    def _life(self, record: dict[str, Any]) -> None:
        record["labels"] = orjson.dumps(record["labels"], option=orjson.OPT_SORT_KEYS).decode()
        record["minute"] = (record["mono_ns"] - record["assigned_mono_ns"]) // _NS_PER_MINUTE
        record = _ADDED_LATER | record
        self.connection.execute(_LIFE, record)
        self.connection.execute(_STATE, record)
        if record["kind"] == "checkpoint":  # a segment's wall time may be a moment later than its monotonic time
            self._moment(record)

    def _machine(self, record: dict[str, Any]) -> None:
        self.connection.execute(_MACHINE, record)
        self._moment(record)

    def _moment(self, record: dict[str, Any]) -> None:
        """Keep where the writer's wall clock stands if that is news."""
        known = self.connection.execute(_SHIFT, (record["writer"],)).fetchone()
        if known is None or abs(record["wall_ns"] - record["mono_ns"] - known[0]) > _STEP_NS:
            self.connection.execute(_MOMENT, record)

    def _price(self, record: dict[str, Any]) -> None:
        record["version"] = record["id"].partition(":")[2]
        self.connection.execute(_PRICE, record)

    def _writer(self, record: dict[str, Any]) -> None:
        self.connection.execute(_WRITER, record)
        self._moment(record)
        self.connection.executemany(_GONE, [(writer,) for writer in record["gone"]])


def _file_at(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def derived_anew(path: Path) -> Ledger:
    """Set the ledger that cannot be read aside and return an empty one, to be derived from the whole journal."""
    try:
        set_aside(path)
    except OSError as error:
        raise LedgerError(f"the ledger {path} cannot be set aside ({error.strerror}): delete it") from error
    return Ledger(path)


def open_read_only(path: Path, derived: Path | None = None) -> sqlite3.Connection:
    """Return a connection that cannot write, in a read transaction: all its queries see one moment.

    `derived`: another ledger, attached as `derived`; its moment begins when it is first asked. Raises LedgerError where
    there is no ledger this program can read.
    """
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=30)
        connection.row_factory = sqlite3.Row
        if derived is not None:
            connection.execute("ATTACH ? AS derived", (f"{derived.absolute().as_uri()}?mode=ro",))
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM main.files")
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            raise LedgerUnreadable(f"the ledger {path} is damaged ({error})") from error
        raise LedgerError(
            f"the ledger {path} cannot be read ({error}): start the platform once with `serve up`"
        ) from error
    return connection


@contextlib.contextmanager
def reading(path: Path, derived: Path | None = None) -> Iterator[sqlite3.Connection]:
    """Give `open_read_only`'s connection. Raise LedgerError also where the ledger turns out damaged on the way."""
    with contextlib.closing(open_read_only(path, derived)) as connection:
        try:
            yield connection
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                raise LedgerUnreadable(f"the ledger {path} is damaged ({error})") from error
            raise LedgerError(f"the ledger {path} cannot be read ({error}): ask once more") from error
