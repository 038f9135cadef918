"""The registry's file after damage, loss and locks: one sentence, and nothing lost silently."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest

from serve.control import database
from serve.control.database import copy_path, transaction
from serve.control.registry import Registry
from serve.core.errors import IntegrityError, ServeError, StorageFull
from tests.billing.test_journal_faults import no_descriptors_left


def filled(path: Path, count: int = 200) -> None:
    connection = database.connect(path)
    with transaction(connection, path):
        connection.executemany("INSERT INTO numbers VALUES (?, 1)", [(f"name-{number}",) for number in range(count)])
    database.close(connection, path)


def names(path: Path) -> list[str]:
    with closing(database.connect(path)) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM numbers ORDER BY name")]


def test_a_copy_is_kept_of_what_was_there_at_the_last_start_or_end_and_can_be_put_back(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    filled(path)
    before = names(path)
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(IntegrityError, match=r"copy registry\.db\.copy over it"):
        database.connect(path)
    assert path.read_bytes() == b"garbage" * 1000, "it is left to people"
    shutil.copy(copy_path(path), path)
    assert names(path) == before
    assert copy_path(path).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("leave", [b"", None])
def test_a_registry_that_is_gone_or_empty_is_not_begun_anew_while_its_copy_is_there(
    tmp_path: Path, leave: bytes | None
) -> None:
    path = tmp_path / "registry.db"
    filled(path)
    path.unlink()
    if leave is not None:
        path.write_bytes(leave)
    with pytest.raises(IntegrityError, match="copy it back"):
        database.connect(path)
    copy_path(path).unlink()
    assert names(path) == []


def test_an_empty_file_that_a_crash_left_before_anything_was_deployed_is_no_loss(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    path.touch()
    assert names(path) == []


def test_a_page_that_rotted_is_noticed_at_the_start_and_does_not_spoil_the_copy(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    filled(path, 5000)
    good = copy_path(path).read_bytes()
    data = bytearray(path.read_bytes())
    for at in range(4096 * 8, len(data), 4096):
        data[at : at + 64] = b"\xff" * 64
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="is damaged"):
        database.connect(path)
    assert copy_path(path).read_bytes() == good


def test_a_file_that_another_program_has_locked_is_waited_for_and_then_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOCK_TIMEOUT_S", 0.2)
    path = tmp_path / "registry.db"
    filled(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ServeError, match="locked by another program"):
            database.connect(path)
        other.execute("ROLLBACK")
    assert len(names(path)) == 200


def test_a_write_ahead_log_torn_at_any_place_leaves_some_whole_number_of_changes(tmp_path: Path) -> None:
    source = tmp_path / "source" / "registry.db"
    source.parent.mkdir()
    connection = database.connect(source)
    for number in range(5):
        with transaction(connection, source):
            connection.execute("INSERT INTO numbers VALUES (?, 1)", (f"name-{number}",))
    wal = source.with_name("registry.db-wal").read_bytes()
    main = source.read_bytes()
    connection.close()
    counts = set()
    for cut in range(0, len(wal) + 1, 997):
        path = tmp_path / f"cut-{cut}" / "registry.db"
        path.parent.mkdir()
        path.write_bytes(main)
        path.with_name("registry.db-wal").write_bytes(wal[:cut])
        found = names(path)
        assert found == [f"name-{number}" for number in range(len(found))]
        counts.add(len(found))
    assert counts >= {0, 4}


def test_without_space_for_a_copy_the_platform_starts_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    filled(path)
    path.with_name("registry.db.copying").mkdir()
    assert len(names(path)) == 200


async def test_without_descriptors_a_change_is_made_or_refused_and_the_next_one_works(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.db", lambda _digest: tmp_path)
    registry.open()
    try:
        assert await registry.reserve_number("digits") == 1
        with no_descriptors_left(), suppress(StorageFull):
            await registry.reserve_number("digits")
        assert await registry.reserve_number("digits") in {2, 3}
        with no_descriptors_left(), pytest.raises(StorageFull, match=r"registry\.db"):
            database.connect(tmp_path / "other" / "registry.db")
    finally:
        registry.close()
    assert names(tmp_path / "registry.db") == ["digits"]
