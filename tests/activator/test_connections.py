"""Client connections: none stays open for nothing, none is misread, none keeps memory for a peer that takes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from activator.limits import Limits
from activator.server import FrontDoorProtocol
from tests.activator.harness import BODY, Harness, harness, until

QUICK = Limits(head_s=0.2, stall_s=0.2, keep_alive_s=0.2, drain_grace_s=0.2)
_HEAD = b"POST /v2/models/m/infer HTTP/%b\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n"


async def _dial(it: Harness) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", int(it.url.rsplit(":", 1)[1]))


async def _until_closed(it: Harness, data: bytes) -> bytes:
    """Send `data`; return all that comes back until the platform closes."""
    reader, writer = await _dial(it)
    writer.write(data)
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("more", [b"", b"expect: nothing\r\n"], ids=["hot", "asgi"])
async def test_a_client_of_http_1_0_finds_the_end_of_its_answer_by_the_end_of_the_connection(
    tmp_path: Path, more: bytes
) -> None:
    async with harness(tmp_path) as it:
        (await it.start(it.deploy())).auto = lambda inside: inside.answer()
        head = _HEAD % (b"1.0", b"connection: keep-alive\r\n" + more, len(BODY))
        answer = await _until_closed(it, head + BODY)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close\r\n" in answer


async def test_a_refusal_instead_of_100_continue_ends_the_connection_since_nobody_knows_what_comes(
    tmp_path: Path,
) -> None:
    async with harness(tmp_path) as it:
        answer = await _until_closed(it, _HEAD % (b"1.1", b"expect: 100-continue\r\n", 900))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"connection: close\r\n" in answer


@pytest.mark.parametrize(
    "trailer", [b"x-%d: y\r\n" * 1000, b"x" * 8000], ids=["many trailers", "one trailer without end"]
)
async def test_what_follows_a_chunked_body_is_bounded_too(tmp_path: Path, trailer: bytes) -> None:
    async with harness(tmp_path) as it:
        it.deploy()
        reader, writer = await _dial(it)
        writer.write(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n")
        async with asyncio.timeout(5):
            while not reader.at_eof():
                writer.write(trailer)
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
                await asyncio.sleep(0)
                if reader.exception() is not None:
                    break
        writer.close()


@pytest.mark.parametrize(
    ("said", "answer"), [(b"", b""), (b"POST /v2/mod", b"HTTP/1.1 408 ")], ids=["nothing", "half a head"]
)
async def test_a_connection_on_which_no_request_comes_is_closed(tmp_path: Path, said: bytes, answer: bytes) -> None:
    async with harness(tmp_path, limits=QUICK) as it:
        assert (await _until_closed(it, said)).startswith(answer)


@pytest.mark.parametrize(
    ("more", "count"),
    [(b"", 1), (b"connection: close\r\n", 1), (b"", 3)],
    ids=["kept alive", "to be closed", "pipelined"],
)
async def test_an_answer_that_nobody_reads_is_dropped_in_the_end(
    tmp_path: Path, more: bytes, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []
    lost = FrontDoorProtocol.connection_lost

    def connection_lost(self: FrontDoorProtocol, exc: Exception | None) -> None:
        ended.append(self)
        lost(self, exc)

    monkeypatch.setattr(FrontDoorProtocol, "connection_lost", connection_lost)
    async with harness(tmp_path, limits=QUICK) as it:
        (await it.start(it.deploy())).auto = lambda inside: inside.answer(body=b"x" * (16 << 20))
        with socket.create_connection(("127.0.0.1", int(it.url.rsplit(":", 1)[1]))) as sock:
            sock.sendall((_HEAD % (b"1.1", more, len(BODY)) + BODY) * count)
            await until(lambda: bool(ended))


async def test_an_answer_that_is_read_slowly_arrives_whole(tmp_path: Path) -> None:
    async with harness(tmp_path, limits=QUICK) as it:
        (await it.start(it.deploy())).auto = lambda inside: inside.answer(body=b"x" * (16 << 20))
        reader, writer = await _dial(it)
        writer.write(_HEAD % (b"1.1", b"", len(BODY)) + BODY)
        received = 0
        async with asyncio.timeout(10):
            while received < 16 << 20:
                received += len(await reader.read(1 << 20))
                await asyncio.sleep(0.03)
        writer.close()


async def test_a_defect_of_the_platforms_own_is_no_fault_of_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with harness(tmp_path) as it:
        it.deploy()

        def broken(url: bytes) -> None:
            raise KeyError(url)

        monkeypatch.setattr(it.activator, "hot_gate", broken)
        answer = await _until_closed(it, _HEAD % (b"1.1", b"", len(BODY)) + BODY)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert any(record.exc_info for record in caplog.records), "the log has the traceback"


async def test_a_url_that_is_none_is_the_requests_fault(tmp_path: Path) -> None:
    async with harness(tmp_path) as it:
        for url in (b"http://[::1/v2", b"http://a:b:c/", b"http://x", b"http://x?y"):
            answer = await _until_closed(it, b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % url)
            assert answer.startswith(b"HTTP/1.1 400 ")
