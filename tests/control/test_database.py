"""The registry's file: versions, damage, full disks."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from serve.control.database import MIGRATIONS, connect, schema_version, transaction
from serve.core.errors import IntegrityError, ServeError, StorageFull


def test_a_new_file_gets_the_newest_schema(tmp_path: Path) -> None:
    connection = connect(tmp_path / "registry.db")
    assert schema_version(connection) == len(MIGRATIONS)
    connection.close()


def test_an_older_file_is_migrated_and_keeps_its_rows(tmp_path: Path) -> None:
    old = connect(tmp_path / "registry.db")
    old.execute("INSERT INTO numbers VALUES ('digits', 7)")
    old.close()
    later = (*MIGRATIONS, "ALTER TABLE numbers ADD COLUMN note TEXT NOT NULL DEFAULT 'old'")
    for _ in range(2):  # the second time there is nothing to do
        new = connect(tmp_path / "registry.db", later)
        assert schema_version(new) == len(later)
        assert new.execute("SELECT * FROM numbers").fetchall() == [("digits", 7, "old")]
        new.close()


def test_a_migration_that_fails_leaves_the_old_schema_whole(tmp_path: Path) -> None:
    connect(tmp_path / "registry.db").close()
    broken = (*MIGRATIONS, "ALTER TABLE numbers ADD COLUMN note TEXT; SELECT * FROM nowhere")
    with pytest.raises(ServeError, match="nowhere"):
        connect(tmp_path / "registry.db", broken)
    connection = connect(tmp_path / "registry.db")
    assert schema_version(connection) == len(MIGRATIONS)
    assert [row[1] for row in connection.execute("PRAGMA table_info(numbers)")] == ["name", "last"]
    connection.close()


def test_a_file_of_a_newer_program_is_refused_with_the_remedy(tmp_path: Path) -> None:
    newer = connect(tmp_path / "registry.db")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(ServeError, match=r"schema version 99.*install that version"):
        connect(tmp_path / "registry.db")


def test_a_file_that_is_no_database_is_damage_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.write_bytes(b"not a database, only some text" * 100)
    with pytest.raises(IntegrityError, match="restore it from a copy"):
        connect(path)


def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageFull, match="make its folder writable"):
        connect(tmp_path / "missing" / "registry.db")


def test_a_full_disk_is_a_sentence_and_rolls_back(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    connection = connect(path)
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(StorageFull, match="free space"):
        insert(connection, path, "small", "x" * 100_000)
    assert not connection.in_transaction
    with transaction(connection, path):
        assert connection.execute("SELECT * FROM numbers").fetchall() == []
    connection.close()


def test_any_other_error_in_a_transaction_rolls_back_and_passes(tmp_path: Path) -> None:
    connection = connect(tmp_path / "registry.db")
    with pytest.raises(TypeError):
        insert(connection, tmp_path, "digits", object())
    assert connection.execute("SELECT * FROM numbers").fetchall() == []
    connection.close()


def insert(connection: sqlite3.Connection, path: Path, *names: object) -> None:
    with transaction(connection, path):
        for name in names:
            if not isinstance(name, str):
                raise TypeError
            connection.execute("INSERT INTO numbers VALUES (?, 1)", (name,))
