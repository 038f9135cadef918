"""The books: nothing leaves before it is written, and a disk that refuses loses nothing."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import closing
from pathlib import Path

import httpx

from billing.journal import JournalError
from billing.ledger import Ledger, open_read_only
from billing.verify import verify
from serve.core.events import Stats
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
        it.router.replica_retired(replica.id)
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


async def test_a_first_replica_is_charged_what_was_measured_not_what_was_reserved(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        key = it.deploy()
        it.router.add_revision(dataclasses.replace(it.router._gates[key].revision, memory_bytes=0))
        info = it.assign(key)
        replica = await it.ready(info, peak_memory_bytes=7 << 20)
        replica.auto = lambda inside: inside.answer()
        await infer(client, it)
        it.router.replica_event(replica.id, Stats(it.clock.monotonic_ns(), 0, 1, 1, 9 << 20))
        await infer(client, it)
        it.kill(replica)
        assigned = it.records("checkpoint")[0]
        requests = [record["memory_mib"] for record in it.records("request")]
        last = it.records("segment")[-1]
        with closing(Ledger(tmp_path / "ledger.db")) as ledger:
            ledger.ingest(it.journal_folder)
        verified = verify(tmp_path / "ledger.db", it.journal_folder)
        with closing(open_read_only(tmp_path / "ledger.db")) as connection:
            (charged,) = connection.execute("SELECT memory_mib FROM lives").fetchone()
    assert (assigned["memory_mib"], requests, last["memory_mib"], charged) == (50, [7, 9], 9, 9)
    assert verified.ok, verified.problems
