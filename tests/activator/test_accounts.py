"""The books: nothing leaves before it is written, and a disk that refuses loses nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from billing.journal import JournalError
from tests.activator.harness import harness, infer, text, until


async def test_while_the_journal_is_refused_answers_wait_and_new_requests_are_turned_away(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        replica = await it.start(it.deploy())
        asked = asyncio.ensure_future(infer(client, it))
        inside = await replica.next()
        write = it.journal.flush
        it.journal.flush = _refuse  # type: ignore[method-assign]
        inside.answer()
        await until(lambda: it.journal.pending_bytes > 0)
        refused = await infer(client, it)
        assert (refused.status_code, text(refused)["code"]) == (507, "storage_full")
        assert not asked.done()
        it.journal.flush = write  # type: ignore[method-assign]
        assert (await asked).status_code == 200
        assert len(it.records("request")) == 1
        replica.auto = lambda inside: inside.answer()
        assert (await infer(client, it)).status_code == 200


def _refuse() -> None:
    raise JournalError("the billing journal cannot be written (No space left on device)")


async def test_a_life_has_a_record_at_assignment_ready_retirement_and_exit(tmp_path: Path) -> None:
    async with harness(tmp_path) as it:
        replica = await it.start(it.deploy(labels={"team": "a"}))
        it.activator.replica_retired(replica.id)
        it.kill(replica)
        checkpoint = it.records("checkpoint")[0]
        parts = [(record["part"], record["exit_reason"]) for record in it.records("segment")]
    assert (checkpoint["replica"], checkpoint["labels"]) == (replica.id, {"team": "a"})
    assert parts == [("cold", None), ("run", None), ("drain", "crashed")]


async def test_records_of_all_answers_of_one_read_are_written_with_one_system_call(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        replica = await it.start(it.deploy())
        asked = [asyncio.ensure_future(infer(client, it)) for _ in range(3)]
        insides = [await replica.next() for _ in range(3)]
        writes = 0
        write = it.journal.flush

        def counted() -> None:
            nonlocal writes
            writes += 1
            write()

        it.journal.flush = counted  # type: ignore[method-assign]
        replica.answer_all(insides)
        await asyncio.gather(*asked)
        assert writes == 1
