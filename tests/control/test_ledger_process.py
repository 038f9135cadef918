"""The ledger's process as the platform drives it: asked, restarted when it dies, left alone once it was told to end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from serve.control.ledger_process import LedgerProcess
from serve.core.lifecycle import Lifecycle

SLOW_TO_END = """
import sys, time
for _ in sys.stdin:
    print('{"synced": 0}', flush=True)
time.sleep(0.3)
"""
"""Like a ledger that has a lot to take in at the end."""


def run(tmp_path: Path, story: Callable[[LedgerProcess], Awaitable[None]], script: str | None = None) -> None:
    """Play `story` on the platform's own kind of loop: it refuses what asyncio's lets pass."""

    async def played() -> None:
        (tmp_path / "journal").mkdir()
        async with Lifecycle() as lifecycle:
            ledger = LedgerProcess(tmp_path / "journal", tmp_path / "ledger.db", lifecycle)
            if script is not None:
                ledger._command = [sys.executable, "-c", script]
            await ledger.start()
            await story(ledger)
            await ledger.close()
            lifecycle.stop()

    uvloop.run(played())


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 10, 100])
def test_a_ledger_that_dies_is_started_again_at_the_next_question(tmp_path: Path, turns: int) -> None:
    async def story(ledger: LedgerProcess) -> None:
        await ledger.sync()
        first = ledger.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        for _ in range(turns):  # its pipes and its status become known one after the other
            await asyncio.sleep(0.0005)
        with contextlib.suppress(OSError):
            await ledger.sync()
        await ledger.sync()
        assert ledger.pid not in (None, first)

    run(tmp_path, story)


def test_records_written_while_the_ledger_ends_disturb_nothing_and_start_nothing(tmp_path: Path) -> None:
    async def story(ledger: LedgerProcess) -> None:
        closing = asyncio.ensure_future(ledger.close())
        await asyncio.sleep(0)
        ledger.poke()
        await closing
        assert ledger.pid is None
        ledger.poke()
        with pytest.raises(ConnectionError, match="shutting down"):
            await ledger.sync()
        assert ledger.pid is None

    run(tmp_path, story, SLOW_TO_END)
