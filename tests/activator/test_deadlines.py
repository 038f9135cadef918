"""Deadlines: a replica that hangs is killed whoever left, nobody pays for a 504, and no upload holds bytes for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from serve.core.events import ExitReason
from tests.activator.harness import BODY, Harness, harness, infer, text, until


async def test_a_replica_that_hangs_is_reported_though_its_callers_left(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        replica = await it.start(it.deploy(execution_timeout=0.3))
        with pytest.raises(httpx.ReadTimeout):
            await client.post(f"{it.url}/v2/models/m/infer", content=BODY, timeout=0.1)
        await until(lambda: it.listener.overdue == [replica.id])


async def test_a_replica_that_hangs_is_reported_though_the_timeout_is_shorter(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        replica = await it.start(it.deploy(timeout=0.1, execution_timeout=0.3))
        assert text(await infer(client, it))["code"] == "execution_timeout"
        assert it.listener.overdue == []
        await until(lambda: it.listener.overdue == [replica.id])


async def test_a_call_refused_at_its_deadline_is_recorded_as_that_and_not_charged(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        replica = await it.start(it.deploy(timeout=0.1))
        assert (await infer(client, it)).status_code == 504
        (await replica.next()).answer()
        await until(lambda: bool(it.records("request")))
        record = it.records("request")[0]
    assert (record["status"], record["charged"], record["reason"]) == (504, False, "execution_timeout")


async def test_a_call_that_took_too_long_is_recorded_though_its_replica_is_killed_for_it(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        replica = await it.start(it.deploy(execution_timeout=0.1))
        assert (await infer(client, it)).status_code == 504
        it.kill(replica, ExitReason.EXECUTION_TIMEOUT)
        records = it.records("request")
    assert [(record["status"], record["charged"], record["reason"]) for record in records] == [
        (504, False, "execution_timeout")
    ]


async def _upload_that_stops(it: Harness, declared: int) -> bytes:
    """Send a head and three bytes of a body; return all that comes back until the platform closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(it.url.rsplit(":", 1)[1]))
    writer.write(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\nabc" % declared)
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("declared", [900, 900_000])
async def test_an_upload_that_stops_is_given_up_at_the_timeout_and_its_bytes_are_free(
    tmp_path: Path, declared: int
) -> None:
    async with harness(tmp_path) as it:
        key = it.deploy(timeout=0.2)
        answer = await _upload_that_stops(it, declared)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close\r\n" in answer
        assert it.router.queue_status(key) == (0, 0, 0)


async def test_a_chunked_upload_that_stops_is_given_up_at_the_timeout(tmp_path: Path) -> None:
    async with harness(tmp_path) as it:
        it.deploy(timeout=0.2)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(it.url.rsplit(":", 1)[1]))
        writer.write(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        async with asyncio.timeout(5):
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()


@pytest.mark.parametrize("declared", [900, 900_000])
async def test_an_upload_that_ends_after_its_revision_was_removed_is_told_so(tmp_path: Path, declared: int) -> None:
    async with harness(tmp_path) as it:
        key = it.deploy()
        reader, writer = await asyncio.open_connection("127.0.0.1", int(it.url.rsplit(":", 1)[1]))
        writer.write(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\nabc" % declared)
        await until(lambda: it.router.queue_status(key)[1] == len(b"abc"))
        it.router.unroute("m")
        it.router.remove_revision(key)
        writer.write(b"x" * (declared - 3))
        async with asyncio.timeout(5):
            assert (await reader.readline()).startswith(b"HTTP/1.1 404 ")
        writer.close()


async def test_who_still_waits_or_is_inside_when_the_drain_ends_is_told_so(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        replica = await it.start(it.deploy(concurrency=1))
        inside = asyncio.ensure_future(infer(client, it))
        first = await replica.next()
        it.deploy("cold")
        waiting = [asyncio.ensure_future(infer(client, it, "cold", BODY + b" " * more)) for more in (0, 100_000)]
        await until(lambda: it.router.in_flight() == 3)
        it.router.end_drain()
        answers = await asyncio.gather(inside, *waiting)
        first.answer()
        await until(lambda: bool(it.records("request")))
        record = it.records("request")[0]
        assert it.router.in_flight() == 0
    assert [(answer.status_code, text(answer)["code"]) for answer in answers] == [(503, "draining")] * 3
    assert (record["status"], record["charged"], record["reason"]) == (503, False, "draining")
