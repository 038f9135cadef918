"""Writes down, about once a minute, what the platform itself takes of the machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from activator.writer import AnswerWriter
from billing import records
from billing.journal import Journal
from billing.machine import PLATFORM, ZYGOTE, MachineMeter, Reading
from serve.core import machine
from serve.core.clock import Clock
from serve.core.kernel import ProcessFigures, read_process, read_self

INTERVAL_S = 60.0
"""At rest this is all that happens: three processes looked at and one line written, well under a millisecond."""


class MachineRecorder:
    """Opens a tenure, and keeps it on the books until `close`. Owned by the event loop.

    `pids`: (ledger, zygote), None while there is none. A process that is replaced goes on where the other was.
    """

    def __init__(
        self,
        journal: Journal,
        writer: AnswerWriter,
        clock: Clock,
        pids: Callable[[], tuple[int | None, int | None]],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._journal = journal
        self._writer = writer
        self._clock = clock
        self._pids = pids
        self._interval_s = interval_s
        memory_mib = machine.memory_bytes() >> 20
        self._meter = MachineMeter(clock.monotonic_ns(), machine.cores(), memory_mib, self._readings())
        self._record(self._meter.state.started_mono_ns)
        self._timer = asyncio.get_running_loop().call_later(interval_s, self._tick)

    def write(self) -> None:
        """Put the state of now into the journal, unless the disk refuses records: a later one says as much."""
        if self._writer.is_blocked:
            return
        now_ns = self._clock.monotonic_ns()
        self._meter.sample(now_ns, self._readings())
        self._record(now_ns)
        self._writer.flush()

    def close(self) -> None:
        """Write the last state: the books are closed, nothing was killed. The journal is still to be closed."""
        self._timer.cancel()
        now_ns = self._clock.monotonic_ns()
        self._meter.sample(now_ns, self._readings())
        self._record(now_ns, ended=True)

    def _tick(self) -> None:
        self.write()
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._tick)

    def _record(self, now_ns: int, *, ended: bool = False) -> None:
        state, wall_ns = self._meter.state, self._clock.wall_ns()
        self._journal.append(records.machine(state, self._journal.origin, mono_ns=now_ns, wall_ns=wall_ns, ended=ended))

    def _readings(self) -> dict[str, list[Reading]]:
        ledger_pid, zygote_pid = self._pids()
        platform = [read_self(), read_process(ledger_pid) if ledger_pid is not None else None]
        zygote = read_process(zygote_pid) if zygote_pid is not None else None
        return {
            PLATFORM: [_reading(figures) for figures in platform if figures is not None],
            ZYGOTE: [_reading(zygote)] if zygote is not None else [],
        }


def _reading(figures: ProcessFigures) -> Reading:
    return Reading((figures.pid, figures.start_ticks), figures.cpu_us, figures.anon_bytes)
