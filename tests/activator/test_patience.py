"""How long a client may take: each stage of a request has its time, and whoever uses it up holds nothing afterwards."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from activator.limits import Limits
from tests.activator.harness import BODY, Harness, harness, until
from tests.activator.wire import CHUNKED, REQUEST, Wire, chunk, dial, head, with_small_window

QUICK = Limits(head_s=0.3, stall_s=0.3, keep_alive_s=0.3, drain_grace_s=0.3)
CALM = replace(QUICK, head_s=20, stall_s=20, keep_alive_s=20)


@pytest.fixture(autouse=True)
def _short_goodbyes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activator.watch.LINGER_S", 0.2)


async def drip(wire: Wire, data: bytes) -> None:
    """Send byte after byte."""
    for at in range(len(data)):
        wire.send(data[at : at + 1])
        await asyncio.sleep(0.02)


async def test_a_head_that_comes_byte_by_byte_is_408_when_its_time_is_up(tmp_path: Path) -> None:
    async with harness(tmp_path, limits=replace(QUICK, keep_alive_s=20)) as it, dial(it) as wire:
        it.deploy()
        dripping = it.tasks.create_task(drip(wire, head("x: " + "y" * 1000)))
        answer = await wire.answer()
        dripping.cancel()
        assert answer is not None
        assert (answer.status, answer.code) == (408, "upload_timeout")
        assert await wire.rest() == b""


async def test_the_time_for_a_head_is_that_of_each_request_not_of_the_connection(tmp_path: Path) -> None:
    async with harness(tmp_path, limits=replace(QUICK, keep_alive_s=20)) as it, dial(it) as wire:
        (await it.start(it.deploy())).auto = lambda inside: inside.answer()
        for _ in range(4):
            wire.send(REQUEST[:10])
            await asyncio.sleep(0.1)
            wire.send(REQUEST[10:])
            answer = await wire.answer()
            assert answer is not None
            assert answer.status == 200


STALLED = {
    "small": head() + BODY[:5],
    "large": head(length=900_000) + b"x" * 100_000,
    "chunked": head(CHUNKED, length=None) + chunk(b"abc"),
    "compressed": head("content-encoding: gzip", length=500) + b"\x1f\x8b\x08\0",
}


@pytest.mark.parametrize("kind", STALLED)
async def test_a_body_of_which_nothing_comes_any_more_is_408_and_its_bytes_are_free(tmp_path: Path, kind: str) -> None:
    async with harness(tmp_path, limits=QUICK) as it, dial(it) as wire:
        key = it.deploy()
        wire.send(STALLED[kind])
        answer = await wire.answer()
        assert answer is not None
        assert (answer.status, answer.code) == (408, "upload_timeout")
        assert await wire.rest() == b""
        await until(lambda: it.router.queue_status(key) == (0, 0, 0))


@pytest.mark.parametrize("kind", STALLED)
async def test_a_body_that_comes_slowly_but_steadily_is_waited_for(tmp_path: Path, kind: str) -> None:
    async with harness(tmp_path, limits=QUICK) as it, dial(it) as wire:
        it.deploy()
        wire.send(STALLED[kind])
        for _ in range(4):
            await asyncio.sleep(0.1)
            wire.send(chunk(b"y") if kind == "chunked" else b"\0")
        await it.turn()
        assert len(it.door.connections) == 1
        assert not wire.reader.at_eof()


async def test_the_rest_of_a_refused_body_is_not_waited_for_without_end(tmp_path: Path) -> None:
    async with harness(tmp_path, limits=QUICK) as it, dial(it) as wire:
        wire.send(head(length=900_000))
        answer = await wire.answer()
        assert answer is not None
        assert answer.status == 404
        await until(lambda: not it.door.connections)


async def big_answers(it: Harness, size: int) -> None:
    (await it.start(it.deploy(concurrency=1))).auto = lambda inside: inside.answer(body=b"x" * size)


async def test_who_takes_nothing_of_an_answer_is_cut_and_its_slot_is_free_at_once(tmp_path: Path) -> None:
    async with harness(tmp_path, limits=QUICK) as it:
        await big_answers(it, 8 << 20)
        _, stuck = await asyncio.open_connection(sock=with_small_window(it), limit=1024)
        stuck.write(REQUEST)
        await until(lambda: len(it.records("request")) == 1)
        async with dial(it) as wire:
            wire.send(REQUEST)
            answer = await wire.answer()
            assert answer is not None
            assert len(answer.body) == 8 << 20
            await until(lambda: len(it.door.connections) == 1)
        stuck.close()


async def test_answers_that_nobody_takes_are_bounded_together_and_the_first_is_cut(tmp_path: Path) -> None:
    size = 16 << 20
    async with harness(tmp_path, limits=replace(CALM, unread_bytes=2 * size)) as it:
        await big_answers(it, size)
        stuck = []
        for count in range(1, 6):
            _, writer = await asyncio.open_connection(sock=with_small_window(it), limit=1024)
            writer.write(REQUEST)
            stuck.append(writer)
            await until(lambda count=count: len(it.records("request")) == count)  # type: ignore[misc]
        unread = [connection.transport.get_write_buffer_size() for connection in it.door.connections]
        assert sum(unread) <= 2 * size
        assert 1 <= len(unread) <= 2
        for writer in stuck:
            writer.close()


async def test_an_answer_to_who_is_still_sending_is_seen_and_not_reset(tmp_path: Path) -> None:
    async with harness(tmp_path, body_limit_bytes=1000) as it, dial(it) as wire:
        it.deploy()
        wire.send(head(CHUNKED, length=None))
        for _ in range(300):
            wire.send(chunk(b"x" * 10_000))
            await asyncio.sleep(0)
        answer = await wire.answer()
        assert answer is not None
        assert (answer.status, answer.headers["connection"]) == (413, "close")


DRAINED = {
    "half a head": (b"POST /v2/mod", 503),
    "half a body": (head() + BODY[:5], 503),
    "half a large body": (head(length=900_000) + b"x" * 100_000, 503),
    "a request that runs": (REQUEST, 200),
    "nothing": (b"", 0),
}


@pytest.mark.parametrize("kind", DRAINED)
async def test_an_order_to_stop_waits_for_requests_and_not_for_who_does_not_send_them(
    tmp_path: Path, kind: str
) -> None:
    sent, status = DRAINED[kind]
    async with harness(tmp_path, limits=replace(CALM, drain_grace_s=0.2)) as it, dial(it) as wire:
        replica = await it.start(it.deploy())
        wire.send(sent)
        await until(lambda: bool(it.door.connections))
        inside = await replica.next() if status == 200 else None
        await it.turn()
        it.router.is_draining = True
        it.door.stop()
        if inside is not None:
            await asyncio.sleep(0.4)  # longer than who does not send is waited for
            inside.answer()
        answer = await wire.answer()
        assert (answer.status if answer else 0) == status
        if answer is not None:
            assert answer.headers["connection"] == "close"
        await until(lambda: not it.door.connections)


async def test_while_others_finish_what_is_asked_anew_is_told_to_come_back(tmp_path: Path) -> None:
    async with harness(tmp_path, limits=CALM) as it, dial(it) as busy, dial(it) as idle, dial(it) as new:
        replica = await it.start(it.deploy())
        busy.send(REQUEST)
        inside = await replica.next()
        idle.send(b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n")
        assert await idle.answer() is not None
        it.router.is_draining = True
        it.door.stop()
        await it.turn()
        for wire in (idle, new):
            wire.send(REQUEST)
            answer = await wire.answer()
            assert answer is not None
            assert (answer.status, answer.code, answer.headers["connection"]) == (503, "draining", "close")
            assert int(answer.headers["retry-after"]) >= 1
        inside.answer()
        answer = await busy.answer()
        assert answer is not None
        assert answer.status == 200
