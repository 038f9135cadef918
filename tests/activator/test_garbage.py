"""Bodies are gone with their requests: not when the garbage collector comes round, and not with the connection."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from activator.calls import Call
from activator.hot import HOT_BODY_BYTES
from tests.activator.harness import harness, infer, until
from tests.activator.wire import dial, head

MARK = b"0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def bodies() -> list[int]:
    """Return the lengths of the bodies that calls, or connections, still hold."""
    holders = (held for held in gc.get_objects() if isinstance(held, Call | RequestResponseCycle))
    return [len(held.body) for held in holders if held.body]


@pytest.mark.parametrize("size", [1000, 2 * HOT_BODY_BYTES])
@pytest.mark.parametrize("status", [200, 500])
async def test_an_answered_request_leaves_no_body_behind_on_a_connection_that_stays(
    tmp_path: Path, size: int, status: int
) -> None:
    async with harness(tmp_path) as world, httpx.AsyncClient() as client:
        replica = await world.start(world.deploy())
        for _ in range(5):
            asking = asyncio.create_task(infer(client, world, body=MARK * (size // len(MARK))))
            (await replica.next()).answer(status)
            assert (await asking).status_code == status
        await until(lambda: not bodies())


@pytest.mark.parametrize("size", [1000, 2 * HOT_BODY_BYTES])
async def test_a_request_whose_client_left_leaves_no_body_behind(tmp_path: Path, size: int) -> None:
    async with harness(tmp_path) as world, httpx.AsyncClient() as client:
        key = world.deploy()
        asking = asyncio.create_task(infer(client, world, body=MARK * (size // len(MARK))))
        await until(lambda: world.router.queue_status(key)[0] == 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: not bodies())


@pytest.mark.parametrize("name", ["m", "nobody"])
async def test_a_refused_request_leaves_no_body_behind_on_a_connection_that_stays(tmp_path: Path, name: str) -> None:
    async with harness(tmp_path) as world, dial(world) as wire:
        world.deploy(queue=0)
        for _ in range(3):
            wire.send(head(name=name, length=50_000) + b"x" * 50_000)
            answer = await wire.answer()
            assert answer is not None
            assert answer.status in {404, 503}
        assert len(world.door.connections) == 1
        await until(lambda: not bodies())
