"""The ledger's tables. Derived from the journal: deleting the file costs nothing but the time to read it again."""

from __future__ import annotations

import sqlite3
from pathlib import Path

VERSION = 3
"""A ledger of another version is not converted but derived anew: the journal has all that it says."""

_TABLES = """
    CREATE TABLE files (
        writer TEXT NOT NULL, file TEXT NOT NULL,
        offset INTEGER NOT NULL,            -- bytes of it that are in the ledger
        PRIMARY KEY (writer, file)
    ) WITHOUT ROWID;
    CREATE TABLE problems (
        writer TEXT NOT NULL, file TEXT NOT NULL, offset INTEGER NOT NULL, sentence TEXT NOT NULL,
        PRIMARY KEY (writer, file, offset)
    ) WITHOUT ROWID;
    CREATE TABLE writers (
        writer TEXT PRIMARY KEY, boot TEXT NOT NULL, pid INTEGER NOT NULL, opened_wall_ns INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE gone (writer TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE moments (                  -- where a writer's wall clock was set: it says this from mono_ns on
        writer TEXT NOT NULL, mono_ns INTEGER NOT NULL, wall_ns INTEGER NOT NULL,
        PRIMARY KEY (writer, mono_ns)
    ) WITHOUT ROWID;
    CREATE TABLE machine (                  -- sums are cumulative from started_mono_ns
        writer TEXT NOT NULL, mono_ns INTEGER NOT NULL, started_mono_ns INTEGER NOT NULL,
        cores INTEGER NOT NULL, memory_mib INTEGER NOT NULL,
        platform_cpu_us INTEGER NOT NULL, platform_mib_us INTEGER NOT NULL, platform_mib INTEGER NOT NULL,
        zygote_cpu_us INTEGER NOT NULL, zygote_mib_us INTEGER NOT NULL, zygote_mib INTEGER NOT NULL,
        ended INTEGER NOT NULL,             -- the writer closed its books
        PRIMARY KEY (writer, mono_ns)
    ) WITHOUT ROWID;
    CREATE TABLE prices (
        version TEXT PRIMARY KEY, effective_ns INTEGER NOT NULL, currency TEXT NOT NULL,
        core_second_nano INTEGER NOT NULL, gib_second_nano INTEGER NOT NULL, request_nano INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE requests (
        id TEXT NOT NULL UNIQUE, wall_ns INTEGER NOT NULL, mono_ns INTEGER NOT NULL, writer TEXT NOT NULL,
        deployment TEXT NOT NULL, revision INTEGER NOT NULL, replica TEXT NOT NULL, status INTEGER NOT NULL,
        charged INTEGER NOT NULL, reason TEXT, rows INTEGER NOT NULL, batch_rows INTEGER NOT NULL,
        queue_us INTEGER NOT NULL,
        inside_us INTEGER,                  -- null: written before there was this field
        cold_us INTEGER NOT NULL, busy_us INTEGER NOT NULL, infer_us INTEGER NOT NULL,
        bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL, cores INTEGER NOT NULL, memory_mib INTEGER NOT NULL,
        cold INTEGER NOT NULL, price TEXT NOT NULL, client_id TEXT, trace_id TEXT
    );
    CREATE INDEX requests_by_replica ON requests (replica);
    CREATE INDEX requests_by_time ON requests (wall_ns);
    CREATE TABLE lives (
        replica TEXT PRIMARY KEY, writer TEXT NOT NULL, deployment TEXT NOT NULL, revision INTEGER NOT NULL,
        labels TEXT NOT NULL,               -- JSON object
        cores INTEGER NOT NULL, memory_mib INTEGER NOT NULL,
        assigned_mono_ns INTEGER NOT NULL, assigned_wall_ns INTEGER NOT NULL,
        pid INTEGER
    ) WITHOUT ROWID;
    CREATE TABLE states (                   -- the last one known of each minute of a life; parts are cumulative
        replica TEXT NOT NULL,
        minute INTEGER NOT NULL,            -- since assignment
        mono_ns INTEGER NOT NULL,
        cold_us INTEGER NOT NULL, billed_us INTEGER NOT NULL, lost_us INTEGER NOT NULL,
        idle_us INTEGER NOT NULL, drain_us INTEGER NOT NULL,
        exit_reason TEXT,                   -- given: life ended here
        estimated INTEGER NOT NULL, bounded INTEGER NOT NULL,
        cpu_us INTEGER, peak_rss_mib INTEGER, anon_mib INTEGER,     -- what the kernel counted; null: nobody looked
        PRIMARY KEY (replica, minute)
    ) WITHOUT ROWID;
"""

DERIVED_TABLES = ("problems", "writers", "gone", "moments", "machine", "prices", "requests", "lives", "states")
"""Everything but `files`: what the journal's content alone decides."""


class LedgerError(Exception):
    """The ledger cannot be used. The sentence names the remedy."""


class LedgerUnreadable(LedgerError):
    """The file is no ledger of this program: damaged, another's, or an older one. It can only be derived anew."""


_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)
_ASIDE = ".damaged"


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether the file itself is broken: neither locked, nor on a full or read-only disk."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in _DAMAGED or str(error).startswith("no such ")


def prepare(connection: sqlite3.Connection) -> None:
    """Make the tables of a new ledger. Raise LedgerUnreadable for an older one, LedgerError for a newer one."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise LedgerError(
            f"the ledger has schema {version}, this program knows {VERSION}: "
            "upgrade servezero, or delete the ledger file and it is rebuilt from the journal"
        )
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if version == 0 and not tables:
        connection.executescript(f"BEGIN IMMEDIATE; {_TABLES}; PRAGMA user_version = {VERSION}; COMMIT;")
    elif version != VERSION or not tables >= {"files", *DERIVED_TABLES}:
        raise LedgerUnreadable(f"the ledger has schema {version}, not {VERSION}")


def set_aside(path: Path) -> Path:
    """Move a ledger that cannot be read out of the way; return where it is now. The last one moved so is replaced."""
    aside = path.with_name(path.name + _ASIDE)
    path.replace(aside)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return aside
