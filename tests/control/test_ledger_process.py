"""The ledger's process as the platform drives it: asked, restarted when it dies, left alone once it was told to end."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
import uvloop

from billing.journal import Journal
from billing.ledger import open_read_only
from serve.control.ledger_process import LedgerProcess
from serve.core.clock import VirtualClock
from serve.core.lifecycle import Lifecycle
from tests.billing.replay import Recorded

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
        (tmp_path / "journal").mkdir(exist_ok=True)
        async with Lifecycle() as lifecycle:
            ledger = LedgerProcess(tmp_path / "journal", tmp_path / "ledger.db", lifecycle)
            if script is not None:
                ledger._command = [sys.executable, "-c", script]
            await ledger.start()
            await story(ledger)
            await ledger.close()
            lifecycle.stop()

    uvloop.run(played())


def test_that_somebody_else_killed_it_is_said_once_for_each_process(tmp_path: Path) -> None:
    said: list[int] = []

    async def story(ledger: LedgerProcess) -> None:
        ledger._on_killed = lambda: said.append(1)
        for kills in (1, 2):
            assert ledger.pid is not None
            os.kill(ledger.pid, signal.SIGKILL)
            await ledger.sync()
            assert len(said) == kills
        running = ledger._process
        assert running is not None
        await ledger._discard(running)
        await ledger.sync()

    run(tmp_path, story)
    assert len(said) == 2, "what was ended from here is no news"


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 10, 100])
def test_a_ledger_that_dies_is_started_again_by_the_question_that_finds_it_dead(tmp_path: Path, turns: int) -> None:
    async def story(ledger: LedgerProcess) -> None:
        await ledger.sync()
        first = ledger.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        for _ in range(turns):  # its pipes and its status become known one after the other
            await asyncio.sleep(0.0005)
        await ledger.sync()
        assert ledger.pid not in (None, first)

    run(tmp_path, story)


def test_a_broken_pipe_to_a_ledger_whose_exit_is_not_known_yet_is_no_defect(tmp_path: Path) -> None:
    async def story(ledger: LedgerProcess) -> None:
        await ledger.sync()
        process = ledger._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.transport.abort()
        await asyncio.sleep(0)
        assert process.returncode is None
        await ledger.sync()
        assert ledger._process is not process

    run(tmp_path, story)


def test_a_ledger_whose_platform_is_gone_says_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "billing", "--journal", str(tmp_path), "--ledger", str(tmp_path / "l.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(b'{"op":"sync"}\n')
        process.stdin.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize("harm", ["garbage", "older", "page"])
def test_a_ledger_file_that_cannot_be_read_is_derived_anew_by_itself(tmp_path: Path, harm: str) -> None:
    path = tmp_path / "ledger.db"

    async def story(ledger: LedgerProcess) -> None:
        await ledger.sync()
        whole = requests(path)
        assert whole == 300
        assert ledger.pid is not None
        os.kill(ledger.pid, signal.SIGKILL)
        spoil(path, harm)
        await ledger.sync(rebuild=harm == "page")
        assert requests(path) == whole
        assert path.with_name("ledger.db.damaged").exists()

    (tmp_path / "journal").mkdir()
    fill(tmp_path / "journal")
    run(tmp_path, story)


def fill(journal: Path) -> None:
    clock = VirtualClock(10**12)
    with closing(Journal(journal, "aaaaaaaa", clock)) as opened:
        replica = Recorded(opened, clock)
        replica.start(1)
        for _ in range(300):
            replica.serve(0.001)


def requests(ledger: Path) -> int:
    with closing(open_read_only(ledger)) as connection:
        return int(connection.execute("SELECT count(*) FROM requests").fetchone()[0])


def spoil(ledger: Path, harm: str) -> None:
    with closing(sqlite3.connect(ledger)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if harm == "older":
            connection.execute("PRAGMA user_version = 1")
            connection.commit()
    if harm == "garbage":
        ledger.write_bytes(b"no database" * 1000)
    elif harm == "page":
        whole = bytearray(ledger.read_bytes())
        whole[4096 * 3 : -4096] = b"x" * (len(whole) - 4096 * 4)
        ledger.write_bytes(whole)


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
