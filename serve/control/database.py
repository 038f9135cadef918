"""The registry's SQLite file: opening, schema versions, transactions, and errors as sentences."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from serve.core.errors import IntegrityError, ServeError, StorageFull

MIGRATIONS: tuple[str, ...] = (
    # `numbers` outlives its deployment: a revision number is never given twice, so that ids, logs and bills of a
    # deleted or failed revision never mix with those of a later one.
    """
    CREATE TABLE numbers (name TEXT PRIMARY KEY, last INTEGER NOT NULL) STRICT;
    CREATE TABLE deployments (name TEXT PRIMARY KEY, created_wall_ns INTEGER NOT NULL) STRICT;
    CREATE TABLE revisions (
        name TEXT NOT NULL REFERENCES deployments ON DELETE CASCADE,
        number INTEGER NOT NULL,
        created_wall_ns INTEGER NOT NULL,
        spec TEXT NOT NULL,
        digest TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        model_file TEXT NOT NULL,
        threads INTEGER NOT NULL,
        memory_bytes INTEGER NOT NULL,
        signature TEXT NOT NULL,
        receipt TEXT NOT NULL,
        PRIMARY KEY (name, number)
    ) STRICT;
    CREATE TABLE traffic (
        name TEXT NOT NULL,
        number INTEGER NOT NULL,
        weight INTEGER NOT NULL CHECK (weight > 0),
        PRIMARY KEY (name, number),
        FOREIGN KEY (name, number) REFERENCES revisions ON DELETE CASCADE
    ) STRICT;
    """,
)
"""Statements that lead from schema version n to n + 1. Append only: files of every version are out there."""


def connect(path: Path, migrations: Sequence[str] = MIGRATIONS) -> sqlite3.Connection:
    """Open the file, creating or migrating it. Raise ServeError with the remedy where that cannot be.

    The connection may move between threads, but only one may use it at a time.
    """
    with readable_errors(path):
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            _migrate(connection, path, migrations)
        except BaseException:
            connection.close()
            raise
    return connection


def schema_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    version = schema_version(connection)
    if version > len(migrations):
        raise ServeError(
            f"{path} has schema version {version}, this program knows {len(migrations)}: "
            "it was written by a newer servezero; install that version or use another SERVE_HOME"
        )
    for number, statements in enumerate(migrations[version:], start=version + 1):
        # The version is part of the same transaction: a process killed here leaves the old schema, whole.
        connection.executescript(f"BEGIN IMMEDIATE; {statements}; PRAGMA user_version = {number}; COMMIT")


@contextmanager
def transaction(connection: sqlite3.Connection, path: Path) -> Iterator[sqlite3.Connection]:
    """Commit at the end of the block, roll back on any error. Errors of SQLite leave as ServeError."""
    with readable_errors(path):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:  # a full disk has rolled back already
                connection.execute("ROLLBACK")
            raise


@contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into sentences that name the remedy."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise _sentence(path, error) from error


def _sentence(path: Path, error: sqlite3.DatabaseError) -> ServeError:
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if primary in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return StorageFull(f"{path} could not be written ({error}): free space on its disk, then try again")
    if primary in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return StorageFull(f"{path} could not be written ({error}): make its folder writable, then try again")
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return IntegrityError(f"{path} is damaged ({error}): restore it from a copy, or move it away and deploy again")
    return ServeError(f"{path}: {error}")
