"""Answers that are held back: while the disk refuses records, and while it syncs them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from billing.journal import JournalError, journal_files
from billing.sync import JournalSync, SyncPolicy
from tests.activator.harness import Harness, harness, infer, text, until
from tests.billing.test_journal_faults import replaced


@contextmanager
def full_disk(it: Harness) -> Iterator[None]:
    with Path("/dev/full").open("wb") as full, replaced(journal_files(it.journal_folder)[-1][2], by=full.fileno()):
        yield


async def test_an_answer_whose_record_is_not_written_by_its_deadline_is_refused_and_not_charged(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        replica = await it.start(it.deploy(timeout=1))
        replica.auto = lambda inside: inside.answer()
        with full_disk(it):
            answer = await infer(client, it)
            assert (answer.status_code, text(answer)["code"]) == (507, "storage_full")
            assert "free space" in text(answer)["error"]
            assert it.records("request") == []
        await until(lambda: not it.accounts.writer.is_blocked)
        (record,) = it.records("request")
        assert (record["status"], record["charged"], record["reason"]) == (507, False, "storage_full")
        assert (await infer(client, it)).status_code == 200


async def test_answers_that_are_held_when_the_time_to_drain_is_over_are_refused_and_not_charged(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        replica = await it.start(it.deploy())
        replica.auto = lambda inside: inside.answer()
        with full_disk(it):
            asked = asyncio.ensure_future(infer(client, it))
            await until(lambda: it.accounts.writer.is_blocked)
            it.router.end_drain()
            answer = await asked
            assert (answer.status_code, text(answer)["code"]) == (503, "draining")
        it.accounts.writer.flush()
        assert [(line["status"], line["charged"]) for line in it.records("request")] == [(503, False)]


async def test_checkpoints_do_not_pile_up_while_the_disk_refuses(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        replica = await it.start(it.deploy())
        it.accounts._checkpoint_interval_s = 0.01
        it.accounts._checkpoint_all()
        with full_disk(it):
            asked = asyncio.ensure_future(infer(client, it))
            (await replica.next()).answer()
            await until(lambda: it.accounts.writer.is_blocked)
            held_bytes = it.journal.pending_bytes
            await asyncio.sleep(0.2)
            assert it.journal.pending_bytes == held_bytes
            assert not asked.done()
        assert (await asked).status_code == 200
        count = len(it.records("checkpoint"))
        await until(lambda: len(it.records("checkpoint")) > count)


async def test_with_sync_always_an_answer_leaves_when_its_record_is_synced_and_not_before(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        writer = it.accounts.writer
        writer.waits_for_sync = True
        replica = await it.start(it.deploy())
        replica.auto = lambda inside: inside.answer()
        asked = [asyncio.ensure_future(infer(client, it)) for _ in range(4)]
        await until(lambda: len(it.records("request")) == 4)
        assert not any(task.done() for task in asked)
        sync = JournalSync(it.journal, SyncPolicy.ALWAYS, writer)
        writer.on_written(sync.written)
        sync.written()
        assert [(await task).status_code for task in asked] == [200] * 4
        for _ in range(10):
            assert (await infer(client, it)).status_code == 200
            assert it.journal.unsynced() is None
        await sync.close()


async def test_while_nobody_knows_what_was_synced_no_request_is_taken_in(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        replica = await it.start(it.deploy())
        replica.auto = lambda inside: inside.answer()
        it.accounts.writer.sync_refused(JournalError("the billing journal cannot be written (Input/output error)"))
        answer = await infer(client, it)
        assert (answer.status_code, text(answer)["code"]) == (507, "storage_full")
        it.accounts.writer.flush()
        assert (await infer(client, it)).status_code == 507, "a write that succeeds says nothing about it"
        it.accounts.writer.synced()
        assert (await infer(client, it)).status_code == 200
