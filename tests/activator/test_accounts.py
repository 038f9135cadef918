"""The books: nothing leaves before it is written, and a disk that refuses loses nothing."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import closing
from pathlib import Path

import httpx

from billing import records
from billing.journal import JournalError
from billing.ledger import Ledger, open_read_only
from billing.verify import verify
from serve.core import machine
from serve.core.events import Stats
from serve.core.frames import ResponseHead, Usage, pack_response
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


MOST = 2**64 - 1
LIES = [
    Usage(MOST, MOST, MOST, MOST, MOST, MOST, 1, 1, 1, 1),
    Usage(0, 0, 0, 0, 0, 0, 2**32 - 1, 2**32 - 1, 0, 0),
    Usage(0, MOST, MOST, 0, MOST, 0, 1, 1, 1, 1),
]


async def test_whatever_a_replica_reports_of_itself_its_life_and_the_books_stay_true(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        key = it.deploy()
        it.router.add_revision(dataclasses.replace(it.router._gates[key].revision, memory_bytes=0))
        replica = await it.ready(it.assign(key), peak_memory_bytes=1 << 70)
        began_ns = it.clock.monotonic_ns()
        for lie in LIES:
            asked = asyncio.ensure_future(infer(client, it))
            inside = await replica.next()
            replica.write(pack_response(inside.stream, ResponseHead(200, 0, -1), b"{}", lie))
            assert (await asked).status_code == 200
            for at_ns in (-(1 << 80), 1 << 80):
                it.router.replica_event(replica.id, Stats(at_ns, 1 << 90, -5, -1, 1 << 80))
        it.kill(replica)
        ended_ns = it.clock.monotonic_ns()
        last = it.records("segment")[-1]
        with closing(Ledger(tmp_path / "ledger.db")) as ledger:
            ledger.ingest(it.journal_folder)
        verified = verify(tmp_path / "ledger.db", it.journal_folder)
    life_us = sum(last[part] for part in ("cold_us", "billed_us", "lost_us", "idle_us", "drain_us"))
    assert life_us <= (ended_ns - last["assigned_mono_ns"]) // 1000
    assert last["memory_mib"] <= records.mebibytes(machine.memory_bytes())
    assert last["mono_ns"] >= began_ns
    assert last["bounded"] is True
    assert verified.problems == []
    assert verified.requests == len(LIES)
    assert ["figures that cannot be" in note for note in verified.notes] == [True]
