"""Bodies that do not come with their head: counted as they come, unpacked within bounds, never kept for nobody."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from activator.inflate import PIECE_BYTES, Inflater
from activator.server import ON_LEAVE
from serve.core.errors import BadRequest
from tests.activator.harness import BODY, harness, infer, text, until
from tests.activator.wire import CHUNKED, chunk, dial, head

PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("coding", PACKERS)
async def test_a_compressed_body_reaches_the_replica_unpacked(tmp_path: Path, coding: str) -> None:
    long = BODY + b" " * 900_000
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        key = it.deploy()
        replica = await it.start(key)
        for body in (BODY, long, b""):
            asked = asyncio.ensure_future(infer(client, it, body=PACKERS[coding](body), content_encoding=coding))
            inside = await replica.next()
            assert inside.body == body
            inside.answer()
            assert (await asked).status_code == 200
        assert it.router.queue_status(key) == (0, 0, 0)


async def test_the_length_of_the_json_part_is_that_of_the_unpacked_body(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        replica = await it.start(it.deploy())
        packed = gzip.compress(BODY + b"\0" * 1000)
        length = {"inference_header_content_length": str(len(BODY)), "content_encoding": "gzip"}
        asked = asyncio.ensure_future(infer(client, it, body=packed, **length))
        inside = await replica.next()
        assert inside.head.json_length == len(BODY)
        inside.answer()
        assert (await asked).status_code == 200


async def test_a_body_that_unpacks_to_more_than_the_limit_is_413_and_was_never_there_whole(tmp_path: Path) -> None:
    bomb = gzip.compress(b"\0" * (200 << 20), 1)
    assert len(bomb) < 1 << 20
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        key = it.deploy()
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, it.router.queue_status(key)[1])
                await asyncio.sleep(0)

        watching = asyncio.ensure_future(watch())
        response = await infer(client, it, body=bomb, content_encoding="gzip")
        watching.cancel()
        assert it.router.queue_status(key) == (0, 0, 0)
    assert (response.status_code, text(response)["code"]) == (413, "too_large")
    assert most <= (1 << 20) + PIECE_BYTES


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (BODY, "Content-Encoding"),
        (gzip.compress(BODY)[:-3], "too early"),
        (gzip.compress(BODY)[:5], "too early"),
        (b"", "too early"),
        (gzip.compress(BODY)[:-8] + b"\0" * 8, "Content-Encoding"),
        (gzip.compress(BODY) * 2, "as one stream"),
        (gzip.compress(BODY) + b"x", "as one stream"),
    ],
    ids=["not packed", "cut", "cut in its head", "empty", "wrong sum", "two streams", "more behind"],
)
async def test_a_body_that_is_not_what_its_coding_says_is_400(tmp_path: Path, body: bytes, words: str) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        key = it.deploy()
        response = await infer(client, it, body=body, content_encoding="gzip")
        assert it.router.queue_status(key) == (0, 0, 0)
    assert (response.status_code, text(response)["code"]) == (400, "bad_request")
    assert words in text(response)["error"]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_where_a_compressed_body_is_cut_into_parts_makes_no_difference(size: int) -> None:
    plain = bytes(range(256)) * 3000
    packed = gzip.compress(plain)
    inflater = Inflater()
    found = b"".join(piece for at in range(0, len(packed), size) for piece in inflater.pieces(packed[at : at + size]))
    inflater.finish()
    assert found == plain
    with pytest.raises(BadRequest, match="too early"):
        Inflater().finish()


@pytest.mark.parametrize("declared", [60_000, 900_000])
async def test_who_announces_much_and_sends_nothing_takes_nobodys_room(tmp_path: Path, declared: int) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        key = it.deploy(queue_bytes=100_000)
        (await it.start(key)).auto = lambda inside: inside.answer()
        async with dial(it) as first, dial(it) as second:
            for wire in (first, second):
                wire.send(head(length=declared) + b"x")
            await until(lambda: it.router.queue_status(key)[1] == 2)
            assert (await infer(client, it, body=b"x" * 50_000)).status_code == 200
            assert (await infer(client, it, body=b"x" * 90_000)).status_code == 200
        await until(lambda: it.router.queue_status(key) == (0, 0, 0))


async def test_chunked_bodies_are_under_the_byte_bound_while_they_come(tmp_path: Path) -> None:
    limit, clients = 1 << 20, 10
    async with harness(tmp_path, body_limit_bytes=limit) as it:
        key = it.deploy(queue_bytes=limit)
        most = 0
        sent = head(CHUNKED, length=None) + chunk(b"x" * 50_000) * 20 + b"0\r\n\r\n"
        async with asyncio.TaskGroup() as tasks:

            async def call() -> None:
                async with dial(it) as wire:
                    wire.send(sent)
                    answer = await wire.answer()
                    assert answer is not None
                    assert answer.status == 200

            for _ in range(clients):
                tasks.create_task(call())
            await until(lambda: it.router.queue_status(key)[1] >= limit)
            for _ in range(100):
                most = max(most, it.router.queue_status(key)[1])
                await asyncio.sleep(0.001)
            (await it.start(key)).auto = lambda inside: inside.answer()
        assert most <= 2 * limit + clients * (256 << 10), "the bound, one body, and one read of each"
        assert it.router.queue_status(key) == (0, 0, 0)


async def test_a_small_body_that_finds_no_room_in_the_midst_of_coming_is_told_to_come_back(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, dial(it) as first, dial(it) as second:
        key = it.deploy(queue_bytes=100)
        (await it.start(key)).auto = lambda inside: inside.answer()
        for held_bytes, wire in enumerate((first, second), 1):
            wire.send(head(length=90))
            await it.turn()  # the head alone, then a first part of the body
            wire.send(b"x")
            await until(lambda held_bytes=held_bytes: it.router.queue_status(key)[1] == held_bytes)  # type: ignore[misc]
        first.send(b"x" * 80)
        await until(lambda: it.router.queue_status(key)[1] == 82)
        second.send(b"x" * 80)
        answer = await second.answer()
        assert answer is not None
        assert (answer.status, answer.code, answer.headers["connection"]) == (503, "queue_full", "close")
        assert int(answer.headers["retry-after"]) >= 1
        first.send(b"x" * 9)
        answer = await first.answer()
        assert answer is not None
        assert answer.status == 200


async def test_who_leaves_while_it_waits_for_room_leaves_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activator.watch._PAUSED_S", 0.02)
    async with harness(tmp_path) as it, dial(it) as first:
        key = it.deploy(queue_bytes=100_000)
        first.send(head(length=100_000) + b"x" * 100_000)
        await until(lambda: it.router.queue_status(key)[0] == 1)
        async with dial(it) as leaving:
            leaving.send(head(length=900_000) + b"x" * 10)
            await until(lambda: it.router.queue_status(key)[1] == 100_010)
        await until(lambda: it.router.queue_status(key) == (1, 100_000, 0))


async def test_who_leaves_in_the_instant_in_which_its_time_is_up_does_no_harm(tmp_path: Path) -> None:
    broken: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: broken.append(context))
    async with harness(tmp_path) as it, dial(it) as first, dial(it) as leaving:
        key = it.deploy(queue_bytes=100_000)
        first.send(head(length=100_000) + b"x" * 100_000)
        await until(lambda: it.router.queue_status(key)[0] == 1)
        leaving.send(head(length=900_000) + b"x" * 10)
        await until(lambda: it.router.queue_status(key)[1] == 100_010)
        (connection,) = (some for some in it.door.connections if ON_LEAVE in some.cycle.scope and some.cycle.more_body)
        connection.cycle.scope[ON_LEAVE]()  # type: ignore[literal-required]
        connection.transport.abort()
        await until(lambda: it.router.queue_status(key) == (1, 100_000, 0))
    assert broken == []
