"""Many connections, and many requests on one: bounded, in order, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from activator.limits import PIPELINED, SPARE, Limits, within
from tests.activator.harness import BODY, Harness, harness, infer, until
from tests.activator.wire import REQUEST, Answer, Wire, dial, head

FEW = Limits(connections=20)


async def dial_many(it: Harness, stack: contextlib.AsyncExitStack, count: int) -> list[Wire]:
    return [await stack.enter_async_context(dial(it)) for _ in range(count)]


async def test_where_there_are_too_many_connections_those_that_rested_longest_give_way(tmp_path: Path) -> None:
    async with harness(tmp_path, limits=FEW) as it, contextlib.AsyncExitStack() as stack:
        (await it.start(it.deploy())).auto = lambda inside: inside.answer()
        idle = await dial_many(it, stack, FEW.connections)
        await until(lambda: len(it.door.connections) == FEW.connections)
        for wire in [*idle[5:], *idle[:5]]:  # the first five are the last to have been used
            wire.send(REQUEST)
            assert await wire.answer() is not None
        for _ in range(10):
            async with dial(it) as newcomer:
                newcomer.send(REQUEST)
                answer = await newcomer.answer()
                assert answer is not None
                assert answer.status == 200
            assert len(it.door.connections) <= FEW.connections
        for wire in idle[:5]:
            wire.send(REQUEST)
            assert await wire.answer() is not None


async def test_where_all_connections_are_busy_a_newcomer_is_told_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activator.watch.LINGER_S", 60.0)  # who was told stays until it closes, however long this takes
    async with harness(tmp_path, limits=FEW) as it, contextlib.AsyncExitStack() as stack:
        key = it.deploy()
        busy = await dial_many(it, stack, FEW.connections)
        for wire in busy:
            wire.send(REQUEST)
        await until(lambda: it.router.queue_status(key)[0] == FEW.connections)
        async with dial(it) as newcomer:
            newcomer.send(REQUEST)
            answer = await newcomer.answer()
            assert answer is not None
            assert (answer.status, answer.code) == (503, "too_many_connections")
            assert answer.headers["retry-after"] == "1"
            assert await newcomer.rest() == b""
        many = await dial_many(it, stack, 2 * SPARE)
        await until(lambda: len(it.door.connections) == FEW.connections + SPARE)
        assert None in [await wire.answer() for wire in many]
        (await it.start(key)).auto = lambda inside: inside.answer()
        answers = [await wire.answer() for wire in busy]
        assert {answer and answer.status for answer in answers} == {200}


def test_replicas_and_files_keep_descriptors_of_their_own() -> None:
    assert within(1024, 10_000) == 1024 - SPARE - 512
    assert within(20_000, 10_000) == 10_000
    assert within(20_000, 50_000) == 20_000 - SPARE - 1024
    assert within(1, 10_000) == 1


async def test_many_idle_connections_cost_others_nothing_and_end_by_themselves(tmp_path: Path) -> None:
    async with harness(tmp_path, limits=Limits(keep_alive_s=1.0)) as it, contextlib.AsyncExitStack() as stack:
        (await it.start(it.deploy())).auto = lambda inside: inside.answer()
        await dial_many(it, stack, 300)
        async with httpx.AsyncClient() as client:
            assert (await infer(client, it)).status_code == 200
        await until(lambda: not it.door.connections)


@pytest.mark.parametrize("count", [PIPELINED, 2000])
async def test_requests_sent_all_at_once_are_answered_in_order_up_to_a_bound(tmp_path: Path, count: int) -> None:
    async with harness(tmp_path) as it, dial(it) as wire:
        (await it.start(it.deploy())).auto = lambda inside: inside.answer(body=inside.body)
        bodies = [b'{"n":%d}' % number for number in range(count)]
        wire.send(b"".join(head(length=len(body)) + body for body in bodies))
        if count == PIPELINED:
            wire.send(b"nonsense\r\n\r\n")
        answers = [answer async for answer in _answers(wire)]
        answered = [answer.body for answer in answers if answer.status == 200]
        assert len(answered) >= min(count, PIPELINED)
        assert answered == bodies[: len(answered)]
        if count > PIPELINED:
            last = answers[-1]
            assert (last.status, last.code, last.headers["connection"]) == (503, "queue_full", "close")


async def _answers(wire: Wire) -> AsyncIterator[Answer]:
    while (answer := await wire.answer()) is not None:
        yield answer


async def test_good_and_bad_requests_on_one_connection_are_answered_in_order(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, dial(it) as wire:
        (await it.start(it.deploy())).auto = lambda inside: inside.answer()
        get = b"GET /v2/%b HTTP/1.1\r\nhost: x\r\n\r\n"
        large = head(length=len(BODY) + 100_000) + BODY + b" " * 100_000
        wire.send(
            REQUEST
            + get % b"nothing"
            + head("inference-header-content-length: x")
            + BODY
            + head(name="nobody")
            + BODY
            + large
            + get % b"health/live"
            + REQUEST
        )
        answers = [await wire.answer() for _ in range(7)]
        assert [answer and answer.status for answer in answers] == [200, 404, 400, 404, 200, 200, 200]


async def test_nothing_is_run_behind_the_last_answer_of_a_connection(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, dial(it) as wire:
        replica = await it.start(it.deploy())
        bad = head("connection: keep-alive", "inference-header-content-length: 9999", version="1.0") + BODY
        wire.send(bad + head("connection: keep-alive", version="1.0") + BODY)
        answer = await wire.answer()
        assert answer is not None
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert await wire.rest() == b""
        await asyncio.sleep(0.05)
        assert replica.inside.empty(), "nobody can be told the answer"


async def test_what_waits_behind_a_request_is_not_read_meanwhile(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, dial(it) as wire:
        key = it.deploy()
        size = 700_000
        request = head(length=size) + b" " * size
        wire.send(request * 30)
        await until(lambda: it.router.queue_status(key)[0] == 1)
        await asyncio.sleep(0.05)
        assert it.router.queue_status(key)[:2] == (1, size)
        (connection,) = it.door.connections
        assert sum(len(cycle.body) for cycle, _ in connection.pipeline) < 1 << 20
        (await it.start(key)).auto = lambda inside: inside.answer()
        for _ in range(30):
            answer = await wire.answer()
            assert answer is not None
            assert answer.status == 200


async def test_wishes_for_another_protocol_one_behind_the_other_cost_no_more_each(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, dial(it) as wire:
        (await it.start(it.deploy())).auto = lambda inside: inside.answer()
        asking = head("connection: upgrade", "upgrade: h2c") + BODY
        wire.send(asking * PIPELINED)
        for _ in range(PIPELINED):
            answer = await wire.answer()
            assert answer is not None
            assert answer.status == 200
