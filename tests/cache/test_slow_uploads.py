"""Uploads that trickle or stop: they end, and what they held is free. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cache.intake import CHUNK_TIMEOUT_S, PART_TIMEOUT_S, parts
from serve.core.errors import SourceUnreachable


async def trickle(pause_s: float, size: int) -> AsyncIterator[bytes]:
    while True:
        await asyncio.sleep(pause_s)
        yield b"x" * size


@pytest.mark.looptime
async def test_who_sends_a_byte_now_and_then_is_given_up_after_the_time_for_one_part() -> None:
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(SourceUnreachable, match="faster line"):
        await anext(parts(trickle(CHUNK_TIMEOUT_S - 1, 1)))
    assert asyncio.get_running_loop().time() - began_s == pytest.approx(PART_TIMEOUT_S)


@pytest.mark.looptime
async def test_who_stops_is_given_up_sooner() -> None:
    began_s = asyncio.get_running_loop().time()
    with pytest.raises(SourceUnreachable, match="no bytes came"):
        await anext(parts(trickle(1e6, 1)))
    assert asyncio.get_running_loop().time() - began_s == pytest.approx(CHUNK_TIMEOUT_S)


@pytest.mark.looptime
async def test_a_slow_upload_of_any_length_that_comes_forward_is_taken() -> None:
    taken = 0
    async for part in parts(trickle(10.0, 64 << 10)):
        taken += len(part)
        if taken > 20 << 20:
            break
    assert asyncio.get_running_loop().time() > PART_TIMEOUT_S * 5
