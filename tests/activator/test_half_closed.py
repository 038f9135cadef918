"""A client that sends no more still gets its answer; one that is gone costs nothing more: its FIN looks the same."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

import pytest

from tests.activator.harness import BODY, harness, until
from tests.activator.wire import CHUNKED, REQUEST, chunk, dial, head, port

SLOW = head("expect: nothing") + BODY
"""The same through ASGI."""


@pytest.mark.parametrize("request_bytes", [REQUEST, SLOW], ids=["hot", "asgi"])
async def test_who_sends_no_more_and_still_reads_is_answered_and_then_closed(
    tmp_path: Path, request_bytes: bytes
) -> None:
    async with harness(tmp_path) as it, dial(it) as wire:
        replica = await it.start(it.deploy())
        wire.send(request_bytes * 3)
        wire.finish()
        for number in range(3):
            inside = await replica.next()
            await asyncio.sleep(0.05)
            assert replica.cancelled == []
            inside.answer(body=b'{"n":%d}' % number)
            answer = await wire.answer()
            assert answer is not None
            assert (answer.status, answer.body) == (200, b'{"n":%d}' % number)
            assert answer.headers.get("connection") == ("close" if number == 2 else None)
        assert await wire.rest() == b""


async def test_a_half_closed_client_of_http_1_0_is_sent_nothing_but_its_answer(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, dial(it) as wire:
        replica = await it.start(it.deploy())
        wire.send(head(version="1.0") + BODY)
        wire.finish()
        inside = await replica.next()
        await asyncio.sleep(0.05)
        inside.answer()
        assert (await wire.rest()).startswith(b"HTTP/1.1 200 ")


async def test_a_client_of_http_1_0_is_not_told_to_continue(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, dial(it) as wire:
        (await it.start(it.deploy())).auto = lambda inside: inside.answer()
        wire.send(head("expect: 100-continue", version="1.0"))
        await asyncio.sleep(0.05)
        wire.send(BODY)
        assert (await wire.rest()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("request_bytes", [REQUEST, SLOW], ids=["hot", "asgi"])
@pytest.mark.parametrize("how", ["closes", "resets"])
async def test_who_leaves_while_its_request_runs_frees_slot_and_work(
    tmp_path: Path, request_bytes: bytes, how: str
) -> None:
    async with harness(tmp_path) as it:
        key = it.deploy(concurrency=1)
        replica = await it.start(key)
        with socket.create_connection(("127.0.0.1", port(it))) as sock:
            if how == "resets":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.sendall(request_bytes)
            inside = await replica.next()
        await until(lambda: replica.cancelled == [inside.stream])
        await until(lambda: it.router.queue_status(key) == (0, 0, 0))
        await until(lambda: not it.door.connections)


@pytest.mark.parametrize("request_bytes", [REQUEST, SLOW], ids=["hot", "asgi"])
async def test_who_leaves_while_its_request_waits_leaves_the_queue(tmp_path: Path, request_bytes: bytes) -> None:
    async with harness(tmp_path) as it:
        key = it.deploy()
        with socket.create_connection(("127.0.0.1", port(it))) as sock:
            sock.sendall(request_bytes)
            await until(lambda: it.router.queue_status(key)[0] == 1)
        await until(lambda: it.router.queue_status(key) == (0, 0, 0))
        await until(lambda: not it.door.connections)


@pytest.mark.parametrize("more", [b"", REQUEST], ids=["alone", "behind a whole one"])
@pytest.mark.parametrize(
    "part", [b"POST /v2", REQUEST[:-3], head(CHUNKED, length=None) + chunk(b"x")], ids=["head", "body", "chunks"]
)
async def test_a_request_whose_end_cannot_come_any_more_is_given_up(tmp_path: Path, more: bytes, part: bytes) -> None:
    async with harness(tmp_path) as it, dial(it) as wire:
        key = it.deploy()
        (await it.start(key)).auto = lambda inside: inside.answer()
        wire.send(more + part)
        wire.finish()
        assert (await wire.rest()).count(b"HTTP/1.1 200 ") == bool(more)
        await until(lambda: it.router.queue_status(key) == (0, 0, 0))
        await until(lambda: not it.door.connections)


@pytest.mark.parametrize("behind", [REQUEST, REQUEST[:-3]], ids=["whole", "half"])
async def test_who_leaves_with_more_behind_its_request_is_noticed_though_it_is_not_read(
    tmp_path: Path, behind: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activator.watch._PAUSED_S", 0.02)
    async with harness(tmp_path) as it:
        key = it.deploy(concurrency=1)
        replica = await it.start(key)
        with socket.create_connection(("127.0.0.1", port(it))) as sock:
            sock.sendall(REQUEST)
            inside = await replica.next()
            sock.sendall(behind)
            await it.turn()
        await until(lambda: replica.cancelled == [inside.stream])
        await until(lambda: not it.door.connections)
