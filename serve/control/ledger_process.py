"""The ledger's process as the platform sees it: started, told when there is something to read, restarted if it dies."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path

from serve.core.lifecycle import Lifecycle

log = logging.getLogger(__name__)

_INTERVAL_S = 1.0
"""Least time between two ingests that nobody asked for."""
_SYNC_TIMEOUT_S = 60.0
_RESTART_S = 1.0
_EXIT_TIMEOUT_S = 30.0
_LAST_BREATH_S = 1.0


class LedgerProcess:
    """`python -m billing` and the pipe to it. Owned by the event loop. Serving never waits for it.

    A dead ledger is started again at the next need: it derives everything from the journal, so nothing is lost.
    """

    def __init__(
        self, journal: Path, ledger: Path, lifecycle: Lifecycle, on_killed: Callable[[], None] = lambda: None
    ) -> None:
        """`on_killed`: told when SIGKILL, which nobody here sent, ended the process."""
        self._command = [sys.executable, "-P", "-m", "billing", "--journal", str(journal), "--ledger", str(ledger)]
        self._lifecycle = lifecycle
        self._on_killed = on_killed
        self._process: Process | None = None
        self._discarded: Process | None = None
        """The last one that was killed from here."""
        self._is_closed = False
        self._pipe = asyncio.Lock()
        self._written = asyncio.Event()
        lifecycle.spawn("ledger ingest", self._ingest())

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def poke(self) -> None:
        """Records were written: ingest them soon. Costs nothing on the request path."""
        self._written.set()

    async def sync(self, *, rebuild: bool = False) -> None:
        """Return when everything written so far is in the ledger. Raise OSError or TimeoutError if it cannot be.

        A process that dies meanwhile is replaced once: it goes on where the other was. `rebuild`: the ledger was found
        damaged; it is set aside and derived anew.
        """
        async with self._pipe, asyncio.timeout(_SYNC_TIMEOUT_S):
            for tries_left in (1, 0):
                if self._is_closed:
                    raise ConnectionError("the platform is shutting down")
                process = await self._running()
                try:
                    await self._ask(process, "rebuild" if rebuild else "sync")
                except ConnectionError as error:
                    await self._ended(process)
                    if not tries_left:
                        raise
                    log.warning("the ledger's process ended; another goes on", extra={"why": str(error)})
                except BaseException:
                    await self._discard(process)  # its next answer would belong to this question
                    raise
                else:
                    return

    async def start(self) -> None:
        async with self._pipe:
            await self._running()

    async def close(self) -> None:
        """Let it ingest what is left and exit. Nobody asks it, or starts it again, after this."""
        self._is_closed = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(_EXIT_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            log.warning("the ledger did not finish in time; it goes on from the journal at the next start")
            await self._discard(process)

    async def _ingest(self) -> None:
        while True:
            await self._written.wait()
            self._written.clear()
            try:
                await self.sync()
            except (OSError, TimeoutError) as error:
                if self._is_closed:
                    return
                log.warning("the ledger did not answer; it is started again", extra={"error": str(error)})
                self._written.set()
                await asyncio.sleep(_RESTART_S)
            await asyncio.sleep(_INTERVAL_S)

    async def _ask(self, process: Process, op: str) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdin.is_closing():  # its pipe may be known to be broken before its exit is
            raise ConnectionError("the ledger ended")
        process.stdin.write(b'{"op":"%b"}\n' % op.encode())
        await process.stdin.drain()
        line = await process.stdout.readline()
        if not line:
            raise ConnectionError("the ledger ended")
        answer = json.loads(line)
        if "synced" not in answer:
            raise OSError(str(answer.get("error", answer)))

    async def _running(self) -> Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(*self._command, stdin=PIPE, stdout=PIPE)
            self._lifecycle.spawn("ledger's end", self._watch(self._process))
        return self._process

    async def _watch(self, process: Process) -> None:
        if await process.wait() == -signal.SIGKILL and process is not self._discarded:
            self._on_killed()

    async def _ended(self, process: Process) -> None:
        """Its pipe is closed: that it exits, too, follows at once, or is seen to."""
        try:
            async with asyncio.timeout(_LAST_BREATH_S):
                await process.wait()
        except TimeoutError:
            await self._discard(process)

    async def _discard(self, process: Process) -> None:
        if process.returncode is None:
            self._discarded = process
            process.kill()
            await process.wait()
