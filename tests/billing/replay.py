"""A replica without a process: the real meter, account, records and journal, driven in virtual time."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field

from billing import records
from billing.attribute import LifeAccount, Parts, Share
from billing.journal import Journal
from billing.machine import PLATFORM, ZYGOTE, MachineMeter, Reading
from billing.prices import Prices
from serve.core.clock import VirtualClock
from serve.core.frames import Usage
from serve.core.meter import BusyMeter

PRICES = Prices(effective_ns=0, currency="USD", core_second_nano=24_000, gib_second_nano=2_500, request_nano=7)
_numbers = itertools.count(1)


@dataclass
class Inside:
    rows: int
    ticket: int
    entered_ns: int


@dataclass
class Metered:
    """What a replica reports: usages and busy time of requests that come and go."""

    clock: VirtualClock
    meter: BusyMeter = field(default_factory=BusyMeter)
    answered: int = 0

    def enter(self, rows: int = 1) -> Inside:
        now_ns = self.clock.monotonic_ns()
        return Inside(rows, self.meter.enter(rows, now_ns), now_ns)

    def leave(self, request: Inside) -> Usage:
        now_ns = self.clock.monotonic_ns()
        share_ns = self.meter.leave(request.ticket, request.rows, now_ns)
        self.answered += 1
        return Usage(
            entered_ns=request.entered_ns,
            left_ns=now_ns,
            infer_ns=now_ns - request.entered_ns,
            share_ns=share_ns,
            total_busy_ns=self.meter.total_busy_ns,
            total_share_ns=self.meter.total_share_ns,
            rows=request.rows,
            batch_rows=request.rows,
            answered=self.answered,
            executions=self.answered,
        )


class Tenured:
    """A platform's own records, with processes that use what a test says."""

    def __init__(self, journal: Journal, clock: VirtualClock, cores: int = 4, memory_mib: int = 4096) -> None:
        self.journal, self.clock = journal, clock
        self.cpu_us = {PLATFORM: 0, ZYGOTE: 0}
        self.held_mib = {PLATFORM: 0, ZYGOTE: 0}
        self.meter = MachineMeter(clock.monotonic_ns(), cores, memory_mib, self._readings())
        self._append(ended=False)

    def write(self, *, ended: bool = False) -> None:
        self.meter.sample(self.clock.monotonic_ns(), self._readings())
        self._append(ended=ended)

    def _append(self, *, ended: bool) -> None:
        now_ns, wall_ns = self.clock.monotonic_ns(), self.clock.wall_ns()
        origin, state = self.journal.origin, self.meter.state
        self.journal.append(records.machine(state, origin, mono_ns=now_ns, wall_ns=wall_ns, ended=ended))

    def _readings(self) -> dict[str, list[Reading]]:
        return {
            line: [Reading((number, 1), self.cpu_us[line], self.held_mib[line] << 20)]
            for number, line in enumerate((PLATFORM, ZYGOTE))
        }


class Recorded:
    """One replica life that is written to a journal, as the activator does it."""

    def __init__(
        self,
        journal: Journal,
        clock: VirtualClock,
        deployment: str = "digits",
        labels: dict[str, str] | None = None,
        memory_mib: int = 48,
    ) -> None:
        self.journal, self.clock = journal, clock
        now_ns = clock.monotonic_ns()
        self.account = LifeAccount(now_ns)
        self.life = records.Life(
            replica=f"{deployment}-r1-{next(_numbers):08d}",
            deployment=deployment,
            revision=1,
            cores=2,
            memory_mib=memory_mib,
            assigned_mono_ns=now_ns,
            assigned_wall_ns=clock.wall_ns(),
            labels=labels or {},
        )
        self.metered = Metered(clock)
        self._lines = records.RequestLines(self.life, journal.origin)
        self.checkpoint()

    def start(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.account.ready(self.clock.monotonic_ns(), self.clock.monotonic_ns())
        self._segment("cold")

    def serve(self, seconds: float, *, status: int = 200) -> str:
        """One request alone inside for `seconds`; return its id."""
        inside = self.metered.enter()
        self.clock.advance(seconds)
        return self.answer(inside, status=status)

    def answer(self, inside: Inside, *, status: int = 200) -> str:
        usage = self.metered.leave(inside)
        return self.record(self.account.answered(usage, self.clock.monotonic_ns()), status)

    def probe(self, seconds: float) -> str:
        """An inference of the platform's own."""
        inside = self.metered.enter(2)
        self.clock.advance(seconds)
        return self.record(self.account.answered(self.metered.leave(inside), self.clock.monotonic_ns()), reason="probe")

    def record(self, share: Share, status: int = 200, id: str | None = None, reason: str | None = None) -> str:
        request_id = id or f"{self.journal.origin.writer}-{next(_numbers)}"
        line = self._lines.line(
            id=request_id,
            mono_ns=self.clock.monotonic_ns(),
            wall_ns=self.clock.wall_ns(),
            status=status,
            charged=status < 500 and reason is None,
            reason=reason if status < 500 else "error",
            rows=1,
            batch_rows=1,
            queue_us=10,
            inside_us=30,
            cold_us=share.cold_us,
            busy_us=share.busy_us,
            infer_us=share.busy_us,
            bytes_in=100,
            bytes_out=50,
            cold=share.cold_us > 0,
            price=PRICES.version,
        )
        self.journal.append(line)
        return request_id

    def checkpoint(self, used: records.Used | None = None, pid: int | None = None) -> None:
        now_ns, wall_ns = self.clock.monotonic_ns(), self.clock.wall_ns()
        life = dataclasses.replace(self.life, pid=pid)
        parts = self.account.parts(now_ns)
        line = records.checkpoint(life, self.journal.origin, parts, mono_ns=now_ns, wall_ns=wall_ns, used=used)
        self.journal.append(line)

    def drain(self) -> None:
        self.account.drain(self.clock.monotonic_ns())
        self._segment("run")

    def exit(
        self, reason: str = "drained", inside_since_ns: int | None = None, used: records.Used | None = None
    ) -> Parts:
        self.account.exited(self.clock.monotonic_ns(), inside_since_ns)
        return self._segment("drain", reason, used)

    def _segment(self, part: str, exit_reason: str | None = None, used: records.Used | None = None) -> Parts:
        now_ns = self.clock.monotonic_ns()
        parts = self.account.parts(now_ns)
        line = records.segment(
            self.life,
            self.journal.origin,
            parts,
            part=part,
            mono_ns=now_ns,
            wall_ns=self.clock.wall_ns(),
            exit_reason=exit_reason,
            estimated=self.account.estimated,
            bounded=self.account.bounded,
            used=used,
        )
        self.journal.append(line)
        return parts
