"""What a broken replica says: no caller pays for it with silence, and nothing of the gate stays taken."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from serve.core.frames import Kind, ResponseHead, pack, pack_response
from tests.activator.harness import PlayedReplica, harness, infer, text, until


def _one_of_several_parts(replica: PlayedReplica, stream: int) -> None:
    replica.write(pack_response(stream, ResponseHead(200, 0, -1), b"{", None))


def _cut_short(replica: PlayedReplica, stream: int) -> None:
    replica.write(pack(Kind.RESPONSE, stream, b"\x01", flags=1))


def _no_status(replica: PlayedReplica, stream: int) -> None:
    replica.write(replica.packed_as(stream, status=999))


def _interim_status(replica: PlayedReplica, stream: int) -> None:
    replica.write(replica.packed_as(stream, status=100))


def _another_kind(replica: PlayedReplica, stream: int) -> None:
    replica.write(pack(Kind.LOAD, stream))


def _unknown_stream(replica: PlayedReplica, stream: int) -> None:
    replica.write(replica.packed_as(stream + 1000, status=200))


def _no_event(replica: PlayedReplica, stream: int) -> None:
    replica.write(pack(Kind.EVENT, 0, b"{}"))


@pytest.mark.parametrize(
    "say",
    [_one_of_several_parts, _cut_short, _no_status, _interim_status, _another_kind, _unknown_stream, _no_event],
)
async def test_after_garbage_the_replica_is_let_go_and_its_calls_are_replayed(tmp_path: Path, say: object) -> None:
    assert callable(say)
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        key = it.deploy()
        replica = await it.start(key)
        asked = [asyncio.ensure_future(infer(client, it)) for _ in range(2)]
        insides = [await replica.next() for _ in range(2)]
        say(replica, insides[0].stream)
        await until(lambda: it.listener.lost == [replica.id])
        it.kill(replica)
        fresh = await it.start(key)
        fresh.auto = lambda inside: inside.answer()
        answers = await asyncio.gather(*asked)
        assert [answer.status_code for answer in answers] == [200, 200]
        assert it.router.queue_status(key) == (0, 0, 0)
        assert len(it.records("request")) == 2


async def test_good_answers_in_front_of_garbage_arrive(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        key = it.deploy(engine="python")
        replica = await it.start(key)
        asked = [asyncio.ensure_future(infer(client, it)) for _ in range(2)]
        insides = [await replica.next() for _ in range(2)]
        replica.write(replica.packed(insides[0], 200, b"{}", 1) + replica.packed_as(insides[1].stream, status=999))
        await until(lambda: it.listener.lost == [replica.id])
        it.kill(replica)
        assert sorted([answer.status_code for answer in await asyncio.gather(*asked)]) == [200, 502]


async def test_nothing_is_sent_to_a_replica_whose_connection_is_closed(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        key = it.deploy(engine="python", concurrency=1)
        replica = await it.start(key)
        first = asyncio.ensure_future(infer(client, it))
        inside = await replica.next()
        second = asyncio.ensure_future(infer(client, it))
        await until(lambda: it.router.queue_status(key)[0] == 1)
        replica.write(replica.packed(inside, 200, b"{}", 1) + pack(Kind.LOAD, 1))
        assert (await first).status_code == 200
        it.kill(replica)
        fresh = await it.start(key)
        fresh.auto = lambda inside: inside.answer()
        response = await second
        assert response.status_code == 200, text(response)
