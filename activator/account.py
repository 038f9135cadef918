"""One replica's life on the books: its meter, its price, and the records that tell of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from billing import records
from billing.attribute import LifeAccount
from billing.prices import Prices
from serve.core.kernel import read_process
from serve.core.scaling import Exited

_MIB = 1 << 20


class Account:
    """The account of one live replica. Owned by the event loop."""

    __slots__ = (
        "_cost_per_us",
        "_most_bytes",
        "_origin",
        "_priced_by",
        "life",
        "lines",
        "measured_bytes",
        "meter",
        "oldest_inside_ns",
    )

    def __init__(
        self,
        life: records.Life,
        origin: records.Origin,
        oldest_inside_ns: Callable[[], int | None],
        *,
        is_memory_known: bool,
        most_bytes: int,
    ) -> None:
        """`most_bytes`: the machine's memory, more than which no replica can hold."""
        self.life = life
        self.lines = records.RequestLines(life, origin)
        self.measured_bytes = None if is_memory_known else 0
        """Most memory measured so far, of a replica whose granted memory is only an estimate."""
        self.meter = LifeAccount(life.assigned_mono_ns)
        self.oldest_inside_ns = oldest_inside_ns
        self._origin = origin
        self._most_bytes = most_bytes
        self._priced_by: Prices | None = None
        self._cost_per_us = 0

    def measured(self, memory_bytes: int) -> None:
        """Charge what was measured instead of an estimate, for the whole life."""
        if memory_bytes > self._most_bytes:
            self.meter.bounded = True
            memory_bytes = self._most_bytes
        if self.measured_bytes is not None and memory_bytes > self.measured_bytes:
            self.measured_bytes = memory_bytes
            self.life = dataclasses.replace(self.life, memory_mib=records.mebibytes(memory_bytes))
            self.lines = records.RequestLines(self.life, self._origin)
            self._priced_by = None

    def cost_per_us(self, prices: Prices) -> int:
        """Return what a microsecond of this replica costs, cores and memory, over `COST_DENOMINATOR`."""
        if prices is not self._priced_by:
            self._priced_by = prices
            self._cost_per_us = prices.cost_numerator(self.life.cores, self.life.memory_mib)
        return self._cost_per_us

    def checkpoint(self, now_ns: int, wall_ns: int, *, is_looked_at: bool = True) -> bytes:
        """Return the record of the life so far; `is_looked_at`: with what the kernel counts of its process now."""
        return records.checkpoint(
            self.life,
            self._origin,
            self.meter.parts(now_ns, self.oldest_inside_ns()),
            mono_ns=self.meter.until_ns(now_ns),
            wall_ns=wall_ns,
            bounded=self.meter.bounded,
            used=_used_now(self.life.pid) if is_looked_at else None,
        )

    def segment(
        self,
        part: str,
        at_ns: int,
        wall_ns: int,
        inside_since_ns: int | None = None,
        exited: Exited | None = None,
    ) -> bytes:
        """Return the record that a part of the life closed at `at_ns`, which may be a moment ago."""
        return records.segment(
            self.life,
            self._origin,
            self.meter.parts(at_ns, inside_since_ns),
            part=part,
            mono_ns=self.meter.until_ns(at_ns),
            wall_ns=wall_ns,
            exit_reason=exited.reason.value if exited is not None else None,
            estimated=self.meter.estimated,
            bounded=self.meter.bounded,
            used=self._used(part, exited),
        )

    def _used(self, part: str, exited: Exited | None) -> records.Used | None:
        """Return what the kernel counted, but not while requests wait for a start to end."""
        if exited is not None:
            return _used_at_end(exited)
        return _used_now(self.life.pid) if part == "run" else None


def _used_now(pid: int | None) -> records.Used | None:
    figures = read_process(pid) if pid else None
    if figures is None:
        return None
    return records.Used(figures.cpu_us, figures.peak_rss_bytes // _MIB, figures.anon_bytes // _MIB)


def _used_at_end(exited: Exited) -> records.Used | None:
    if exited.cpu_us is None or exited.peak_rss_bytes is None:
        return None
    return records.Used(exited.cpu_us, exited.peak_rss_bytes // _MIB)
