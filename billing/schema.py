"""The ledger's tables. Derived from the journal: deleting the file costs nothing but the time to read it again."""

from __future__ import annotations

import sqlite3

MIGRATIONS = (
    """
    CREATE TABLE files (
        writer TEXT NOT NULL, segment TEXT NOT NULL,
        offset INTEGER NOT NULL,            -- bytes of it that are in the ledger
        PRIMARY KEY (writer, segment)
    ) WITHOUT ROWID;
    CREATE TABLE problems (
        writer TEXT NOT NULL, segment TEXT NOT NULL, offset INTEGER NOT NULL, sentence TEXT NOT NULL,
        PRIMARY KEY (writer, segment, offset)
    ) WITHOUT ROWID;
    CREATE TABLE writers (
        writer TEXT PRIMARY KEY, boot TEXT NOT NULL, pid INTEGER NOT NULL, opened_wall_ns INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE gone (writer TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE prices (
        version TEXT PRIMARY KEY, effective_ns INTEGER NOT NULL, currency TEXT NOT NULL,
        core_second_nano INTEGER NOT NULL, gib_second_nano INTEGER NOT NULL, request_nano INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE requests (
        id TEXT NOT NULL UNIQUE, wall_ns INTEGER NOT NULL, mono_ns INTEGER NOT NULL, writer TEXT NOT NULL,
        deployment TEXT NOT NULL, revision INTEGER NOT NULL, replica TEXT NOT NULL, status INTEGER NOT NULL,
        charged INTEGER NOT NULL, reason TEXT, rows INTEGER NOT NULL, batch_rows INTEGER NOT NULL,
        queue_us INTEGER NOT NULL, cold_us INTEGER NOT NULL, busy_us INTEGER NOT NULL, infer_us INTEGER NOT NULL,
        bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL, cores INTEGER NOT NULL, memory_mib INTEGER NOT NULL,
        cold INTEGER NOT NULL, price TEXT NOT NULL, client_id TEXT, trace_id TEXT
    );
    CREATE INDEX requests_by_replica ON requests (replica);
    CREATE INDEX requests_by_time ON requests (wall_ns);
    CREATE TABLE lives (
        replica TEXT PRIMARY KEY, writer TEXT NOT NULL, deployment TEXT NOT NULL, revision INTEGER NOT NULL,
        labels TEXT NOT NULL,               -- JSON object
        cores INTEGER NOT NULL, memory_mib INTEGER NOT NULL,
        assigned_mono_ns INTEGER NOT NULL, assigned_wall_ns INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE states (                   -- the last one known of each minute of a life; parts are cumulative
        replica TEXT NOT NULL,
        minute INTEGER NOT NULL,            -- since assignment
        mono_ns INTEGER NOT NULL,
        cold_us INTEGER NOT NULL, billed_us INTEGER NOT NULL, lost_us INTEGER NOT NULL,
        idle_us INTEGER NOT NULL, drain_us INTEGER NOT NULL,
        exit_reason TEXT,                   -- given: life ended here
        estimated INTEGER NOT NULL,
        PRIMARY KEY (replica, minute)
    ) WITHOUT ROWID;
    """,
)

DERIVED_TABLES = ("problems", "writers", "gone", "prices", "requests", "lives", "states")
"""Everything but `files`: what the journal's content alone decides."""


class LedgerError(Exception):
    """The ledger cannot be used. The sentence names the remedy."""


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a ledger to this program's schema, in one transaction per step. Raise LedgerError if it is newer."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise LedgerError(
            f"the ledger has schema {version}, this program knows {len(MIGRATIONS)}: "
            "upgrade servezero, or delete the ledger file and it is rebuilt from the journal"
        )
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;")
