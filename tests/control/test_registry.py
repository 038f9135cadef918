"""The registry: what is written is there after a restart, numbers are never given twice, nothing is half done."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from serve.control.registry import Registry, StoredRevision
from serve.core.errors import IntegrityError, NotFound, StorageFull, UnknownModel, UnknownVersion
from serve.core.ids import RevisionKey
from tests.control.bench import stored_revision

ROOT = Path(__file__).parents[2]


def opened(path: Path, keep_revisions: int = 10) -> Registry:
    registry = Registry(path / "registry.db", lambda _digest: Path("/models/m"), keep_revisions)
    registry.open()
    return registry


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = opened(tmp_path)
    yield registry
    registry.close()


async def add(registry: Registry, *numbers: int) -> list[StoredRevision]:
    dropped: list[StoredRevision] = []
    for number in numbers:
        await registry.add(stored_revision(number), dropped.extend)
    return dropped


async def test_everything_is_the_same_after_a_restart(tmp_path: Path) -> None:
    first = opened(tmp_path)
    await add(first, 1, 2)
    await first.add(stored_revision(1, "other", labels={"team": "vision"}, idle="5m"), lambda _dropped: None)
    await first.set_traffic("digits", ((1, 3), (2, 1)), lambda _deployment: None)
    first.close()
    second = opened(tmp_path)
    assert second.deployments == first.deployments
    assert second.get("digits").weights == ((1, 3), (2, 1))
    second.close()


async def test_numbers_go_on_after_a_deletion_and_a_restart(tmp_path: Path) -> None:
    registry = opened(tmp_path)
    assert [await registry.reserve_number("digits") for _ in range(3)] == [1, 2, 3]
    await add(registry, 3)
    await registry.delete("digits", lambda _deployment: None)
    registry.close()
    registry = opened(tmp_path)
    assert "digits" not in registry.deployments
    assert await registry.reserve_number("digits") == 4
    assert await registry.reserve_number("other") == 1
    registry.close()


async def test_a_new_revision_takes_all_traffic_and_drops_the_oldest(tmp_path: Path) -> None:
    registry = opened(tmp_path, keep_revisions=3)
    dropped = await add(registry, 1, 2, 3, 4, 5)
    assert [stored.number for stored in dropped] == [1, 2]
    assert list(registry.get("digits").revisions) == [3, 4, 5]
    assert registry.get("digits").weights == ((5, 1),)
    registry.close()
    again = opened(tmp_path)
    assert again.deployments == registry.deployments
    again.close()


async def test_what_ran_until_now_is_kept_even_if_it_is_the_oldest(tmp_path: Path) -> None:
    registry = opened(tmp_path, keep_revisions=3)
    await add(registry, 1, 2, 3)
    await registry.set_traffic("digits", ((1, 1),), lambda _deployment: None)
    dropped = await add(registry, 4)
    assert [stored.number for stored in dropped] == [2]
    assert list(registry.get("digits").revisions) == [1, 3, 4]
    registry.close()


async def test_with_one_revision_kept_the_previous_one_still_can_be_gone_back_to(tmp_path: Path) -> None:
    registry = opened(tmp_path, keep_revisions=1)
    dropped = await add(registry, 1, 2, 3)
    assert [stored.number for stored in dropped] == [1]
    registry.close()


async def test_unknown_names_and_revisions_are_refused(registry: Registry) -> None:
    await add(registry, 1)
    with pytest.raises(UnknownModel, match="nobody"):
        registry.get("nobody")
    with pytest.raises(UnknownVersion, match="retained are 1"):
        await registry.set_traffic("digits", ((2, 1),), lambda _deployment: None)
    with pytest.raises(UnknownModel):
        await registry.delete("nobody", lambda _deployment: None)


async def test_a_learned_memory_is_there_after_a_restart(tmp_path: Path) -> None:
    registry = opened(tmp_path)
    await add(registry, 1)
    await registry.set_memory(RevisionKey("digits", 1), 99 << 20)
    await registry.set_memory(RevisionKey("gone", 1), 99 << 20)
    registry.close()
    registry = opened(tmp_path)
    assert registry.get("digits").revision(1).revision.memory_bytes == 99 << 20
    registry.close()


async def test_a_revision_that_cannot_be_read_is_said_with_the_remedy(tmp_path: Path) -> None:
    registry = opened(tmp_path)
    await add(registry, 1)
    registry.close()
    with closing(sqlite3.connect(tmp_path / "registry.db")) as connection, connection:
        connection.execute('UPDATE revisions SET spec = \'{"name": "digits", "of_a_later_version": 1}\'')
    registry = Registry(tmp_path / "registry.db", Path)
    with pytest.raises(IntegrityError, match="install the version that wrote it"):
        registry.open()
    registry.close()


async def test_a_model_the_store_lost_does_not_keep_the_registry_from_opening(tmp_path: Path) -> None:
    registry = opened(tmp_path)
    await add(registry, 1)
    registry.close()

    def lost(_digest: str) -> Path:
        raise NotFound("no such model")

    registry = Registry(tmp_path / "registry.db", lost)
    registry.open()
    assert registry.get("digits").revision(1).revision.model_dir == ""
    registry.close()


async def test_a_caller_that_leaves_during_a_write_loses_nothing(registry: Registry) -> None:
    """Disk and memory agree, and `committed` runs, although the caller was cancelled while the disk wrote."""
    committed: list[object] = []
    caller = asyncio.ensure_future(registry.add(stored_revision(1), committed.append))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait({caller})
    assert caller.cancelled()
    assert len(committed) == 1
    assert registry.get("digits").weights == ((1, 1),)


async def test_a_full_disk_changes_nothing_in_memory(registry: Registry, tmp_path: Path) -> None:
    await add(registry, 1)
    assert registry._connection is not None
    pages = registry._connection.execute("PRAGMA page_count").fetchone()[0]
    registry._connection.execute(f"PRAGMA max_page_count = {pages}")
    before = dict(registry.deployments)
    large = stored_revision(2, engine_settings={"text": "x" * 100_000})
    with pytest.raises(StorageFull):
        await registry.add(large, lambda _dropped: None)
    assert registry.deployments == before
    again = opened(tmp_path)
    assert again.deployments == before
    again.close()


_WRITER = """
import asyncio, sys
from pathlib import Path
from tests.control.bench import stored_revision
from tests.control.test_registry import opened

async def main():
    registry = opened(Path(sys.argv[1]))
    for _ in range(10_000):
        number = await registry.reserve_number("digits")
        await registry.add(stored_revision(number), lambda dropped: None)
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("answers", [1, 4, 9])
def test_a_killed_writer_leaves_every_finished_change_and_no_half_one(tmp_path: Path, answers: int) -> None:
    command = [sys.executable, "-c", _WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as writer:
        assert writer.stdout is not None
        seen = [int(writer.stdout.readline()) for _ in range(answers)]
        os.kill(writer.pid, signal.SIGKILL)  # somewhere within its next write
        seen += [int(line) for line in writer.stdout.read().split()]
    registry = opened(tmp_path)
    deployment = registry.get("digits")
    assert deployment.current.number >= seen[-1]
    assert deployment.weights == ((deployment.current.number, 1),)
    assert len(deployment.revisions) <= 10
    assert asyncio.run(registry.reserve_number("digits")) > deployment.current.number
    registry.close()


_TORN = """
import os, sys
from pathlib import Path
from serve.control import database
connection = database.connect(Path(sys.argv[1]) / "registry.db")
connection.execute("BEGIN IMMEDIATE")
connection.execute("DELETE FROM deployments")
connection.execute("INSERT INTO numbers VALUES (?, 1)", ("x" * 3_000_000,))
os.kill(os.getpid(), 9)
"""


def test_a_transaction_that_was_torn_off_never_happened(tmp_path: Path) -> None:
    registry = opened(tmp_path)
    asyncio.run(add(registry, 1))
    registry.close()
    done = subprocess.run([sys.executable, "-c", _TORN, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    again = opened(tmp_path)
    assert again.deployments == registry.deployments
    assert again.deployments
    again.close()
