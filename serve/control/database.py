"""The registry's SQLite file: opening, schema versions, transactions, and errors as sentences."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from serve.core.errors import IntegrityError, ServeError, StorageFull

log = logging.getLogger(__name__)

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
    "ALTER TABLE revisions ADD COLUMN source TEXT NOT NULL DEFAULT ''",
)
"""Statements that lead from schema version n to n + 1. Append only: files of every version are out there."""


LOCK_TIMEOUT_S = 5.0
"""Longest wait for a foreign process that has the file locked, such as a backup."""


def copy_path(path: Path) -> Path:
    """Return where a copy of the file is kept, made whenever it was opened and found whole."""
    return path.with_name(path.name + ".copy")


def connect(path: Path, migrations: Sequence[str] = MIGRATIONS) -> sqlite3.Connection:
    """Open the file, creating or migrating it. Raise ServeError with the remedy where that cannot be.

    Nothing is lost silently: a damaged file, or none where there is a copy of one, is refused and left to people. The
    connection may move between threads, but only one may use it at a time.
    """
    with readable_errors(path):
        _refuse_lost(path)
        connection = sqlite3.connect(path, LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            _check(connection)
            _keep_copy(connection, path)
            _migrate(connection, path, migrations)
        except BaseException:
            connection.close()
            raise
    return connection


def close(connection: sqlite3.Connection, path: Path) -> None:
    """Close the file; its copy has what it has, unless that is damaged."""
    try:
        _check(connection)
        _keep_copy(connection, path)
    except sqlite3.DatabaseError as error:
        log.error("the registry was not copied", extra={"error": str(_sentence(path, error))})
    finally:
        connection.close()


def _refuse_lost(path: Path) -> None:
    """Raise IntegrityError where a registry with content is gone or empty: SQLite would begin a new one."""
    if copy_path(path).exists() and not (path.exists() and path.stat().st_size):
        raise IntegrityError(
            f"{path} is lost, and {copy_path(path)} has what was deployed when the platform last started or "
            "ended: copy it back (cp), or remove it to begin with nothing"
        )


def _check(connection: sqlite3.Connection) -> None:
    """Raise DatabaseError where the file's structure is damaged. It is small: this takes a millisecond or two."""
    (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if said != "ok":
        error = sqlite3.DatabaseError(said)
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


def _keep_copy(connection: sqlite3.Connection, path: Path) -> None:
    """Copy a file with content. The copy is complete or the one before; the platform runs without, too."""
    if not schema_version(connection):
        return
    temporary = path.with_name(path.name + ".copying")
    try:
        temporary.unlink(missing_ok=True)
        with closing(sqlite3.connect(temporary, isolation_level=None)) as copy:
            connection.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
        temporary.chmod(0o600)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(copy_path(path))
    except (OSError, sqlite3.DatabaseError) as error:
        log.warning("the registry was not copied", extra={"error": str(error)})
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ServeError(
            f"{path} is locked by another program ({error}): end what has it open (`fuser {path}`), then try again"
        )
    if primary in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return StorageFull(f"{path} could not be written ({error}): free space on its disk, then try again")
    if primary in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return StorageFull(f"{path} could not be written ({error}): make its folder writable, then try again")
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        copy = copy_path(path)
        remedy = f"copy {copy.name} over it" if copy.exists() else "restore it from a copy"
        return IntegrityError(
            f"{path} is damaged ({error}): {remedy} (remove {path.name}-wal and {path.name}-shm with it), or move "
            f"{path.name}* away and deploy again"
        )
    return ServeError(f"{path}: {error}")
