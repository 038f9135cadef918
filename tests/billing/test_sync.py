"""Syncing the journal: off the loop, one at a time, tried again; and what each policy promises."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.journal import Journal, JournalError, journal_files
from billing.sync import JournalSync, SyncPolicy
from serve.core.clock import SystemClock
from tests.billing.test_journal import line, numbers
from tests.billing.test_journal_faults import replaced


class Listener:
    def __init__(self) -> None:
        self.began = 0
        self.done = 0
        self.errors: list[str] = []
        self.changed = asyncio.Event()

    def sync_began(self) -> None:
        self.began += 1

    def synced(self) -> None:
        self.done += 1
        self.changed.set()

    def sync_refused(self, error: JournalError) -> None:
        self.errors.append(str(error))
        self.changed.set()

    async def next(self) -> None:
        async with asyncio.timeout(10):
            await self.changed.wait()
        self.changed.clear()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path, "aaaaaaaa", SystemClock(), file_bytes=1000)
    yield opened
    opened.close()


def write(journal: Journal, *written: int) -> None:
    for number in written:
        journal.append(line(number))
    journal.flush()


async def test_records_are_synced_soon_after_they_are_written_and_nothing_runs_after_that(journal: Journal) -> None:
    listener = Listener()
    sync = JournalSync(journal, SyncPolicy.INTERVAL, listener, interval_s=0.01)
    for number in range(3):
        write(journal, number)
        sync.written()
        await listener.next()
    assert journal.unsynced() is None
    sync.written()
    await asyncio.sleep(0.05)
    assert listener.done == listener.began == 3, "nothing is new: nothing is done"
    await sync.close()


async def test_writes_between_two_syncs_share_one(journal: Journal) -> None:
    listener = Listener()
    sync = JournalSync(journal, SyncPolicy.INTERVAL, listener, interval_s=0.1)
    for number in range(200):
        write(journal, number)
        sync.written()
    await listener.next()
    for number in range(200, 400):
        write(journal, number)
        sync.written()
    await listener.next()
    assert listener.done == 2
    await sync.close()


async def test_with_always_whatever_is_written_in_one_turn_is_synced_together(journal: Journal) -> None:
    listener = Listener()
    sync = JournalSync(journal, SyncPolicy.ALWAYS, listener)
    for turn in range(5):
        for number in range(10):
            write(journal, 10 * turn + number)
            sync.written()
        await listener.next()
    assert listener.done == 5
    assert journal.unsynced() is None
    await sync.close()


async def test_with_none_only_files_that_were_followed_by_others_are_synced_and_closed(
    journal: Journal, tmp_path: Path
) -> None:
    listener = Listener()
    sync = JournalSync(journal, SyncPolicy.NONE, listener, interval_s=0.01)
    write(journal, 0)
    sync.written()
    await asyncio.sleep(0.05)
    assert listener.began == 0
    for number in range(1, 100):
        write(journal, number)
        sync.written()
    assert len(journal_files(tmp_path)) > 3
    assert len(_open_files(tmp_path)) > 1
    await listener.next()
    write(journal, 100)
    assert len(_open_files(tmp_path)) == 1
    await sync.close()


async def test_a_refused_sync_is_said_and_tried_again_in_another_file_until_it_succeeds(
    journal: Journal, tmp_path: Path
) -> None:
    listener = Listener()
    sync = JournalSync(journal, SyncPolicy.INTERVAL, listener, interval_s=0.01)
    read_end, write_end = os.pipe()  # takes records and cannot be synced
    with replaced(journal_files(tmp_path)[0][2], by=write_end):
        write(journal, 0)
        sync.written()
        await listener.next()
        await listener.next()
        assert "Invalid argument" in listener.errors[0]
        write(journal, 1)
        assert numbers(tmp_path) == [1], "records go to another file than the one that may have lost some"
    os.close(read_end)
    os.close(write_end)
    while not listener.done:
        await listener.next()
    write(journal, 2)
    assert numbers(tmp_path) == [1, 2]
    await sync.close()


async def test_writing_goes_on_while_a_sync_runs_and_the_end_waits_for_it(journal: Journal, tmp_path: Path) -> None:
    listener = Listener()
    sync = JournalSync(journal, SyncPolicy.INTERVAL, listener, interval_s=0.0)
    for number in range(300):
        write(journal, number)
        sync.written()
        await asyncio.sleep(0)
    closing = asyncio.ensure_future(sync.close())
    await closing
    assert listener.began == listener.done
    sync.written()
    journal.close()
    assert numbers(tmp_path) == list(range(300))


def _open_files(folder: Path) -> list[Path]:
    found = [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return [path for path in found if path.is_relative_to(folder)]
