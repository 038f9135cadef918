"""The price in force is the wall clock's, and each record says which it was, however the clock is stepped."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from billing.prices import PriceBook, Prices
from serve.core.clock import NS_PER_S, SystemClock
from tests.activator.harness import harness, infer

HOUR_NS = 3600 * NS_PER_S


async def test_a_clock_that_is_stepped_over_a_change_of_price_charges_what_the_record_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps_ns = [0]
    monkeypatch.setattr(SystemClock, "wall_ns", staticmethod(lambda: time.time_ns() + steps_ns[-1]))
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        old = Prices(0, "USD", 24_000, 2_500, 0)
        new = Prices(time.time_ns() + HOUR_NS, "USD", 48_000_000, 2_500, 1_000_000_000)
        it.accounts._book = PriceBook([old, new])
        replica = await it.start(it.deploy())
        replica.auto = lambda inside: inside.answer()
        told: list[str] = []
        for step_ns in (0, 2 * HOUR_NS, -1000 * 24 * HOUR_NS, 1000 * 24 * HOUR_NS, 0):
            steps_ns.append(step_ns)
            told.append((await infer(client, it)).headers["x-serve-cost"])
        charged = [record["price"] for record in it.records("request")]
        assert charged == [old.version, new.version, old.version, new.version, old.version]
        dear = [float(cost.split()[0]) >= 1 for cost in told]
        assert dear == [False, True, False, True, False]
        walls = [record["wall_ns"] for record in it.records("request")]
        assert walls[2] < walls[0] < walls[1] < walls[3]
        monos = [record["mono_ns"] for record in it.records("request")]
        assert monos == sorted(monos)
        assert monos[-1] - monos[0] < HOUR_NS
