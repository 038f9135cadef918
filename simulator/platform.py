"""A platform on paper: every real piece between the doors and the processes, put together as `serve.platform` does."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from activator.accounts import Accounts
from activator.router import Router
from autoscaler.loop import Autoscaler
from autoscaler.surroundings import Surroundings
from billing import records
from billing.journal import Journal
from billing.machine import MachineMeter
from billing.prices import PriceBook, Prices
from billing.sync import JournalSync, SyncPolicy
from serve.core.clock import NS_PER_S
from serve.core.errors import ServeError
from serve.core.ids import RequestIds, RevisionKey, new_writer_id
from serve.core.lifecycle import Lifecycle
from serve.core.metrics import Metrics
from simulator.callers import SimulatedCall
from simulator.disk import SimulatedDisk, WatchedSync
from simulator.driver import SimulatedDriver
from simulator.habits import Habits
from simulator.loop import SimulatedClock
from simulator.work import Work

_PRICES = PriceBook([Prices(0, "USD", 24_000, 2_500, 100)])
_FILE_BYTES = 64 << 10
"""Small, so that journal files follow each other."""

_LOOK_S = 0.05
_LAST_EXITS_S = 0.5
"""As in `serve.platform`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the platform runs on, and how it is set up."""

    memory_budget_bytes: int
    cores: int
    drain_timeout_s: float = 30.0
    checkpoint_interval_s: float = 5.0
    journal_sync: SyncPolicy = SyncPolicy.NONE
    prices: PriceBook = field(default=_PRICES)


class SimulatedPlatform:
    """Owned by the running loop. `habits` tell how its replicas behave; `disk` takes its journal.

    `on_memory_learned` is the control plane's.
    """

    def __init__(
        self,
        machine: Machine,
        clock: SimulatedClock,
        chance: random.Random,
        habits: dict[str, Habits],
        disk: SimulatedDisk,
        lifecycle: Lifecycle,
        on_memory_learned: Callable[[RevisionKey, int], None] | None = None,
    ) -> None:
        self.machine = machine
        self.clock = clock
        self.metrics = Metrics()
        self.disk = disk
        self.is_dead = False
        """Its process is gone: nothing that still runs here has an effect."""
        self.calls: list[SimulatedCall] = []
        """All that were accepted, in order."""
        writer = new_writer_id(chance)
        self.journal = Journal(disk.folder, writer, clock, _FILE_BYTES, write=self._write)
        self.accounts = Accounts(self.journal, machine.prices, clock, self.metrics, machine.checkpoint_interval_s)
        self.safe_until_ns = 0
        """What was written by then survives a loss of power."""
        watched = WatchedSync(disk, writer, self.accounts.writer, self._synced, clock)
        self._sync = JournalSync(self.journal, machine.journal_sync, watched)
        self.accounts.writer.waits_for_sync = machine.journal_sync is SyncPolicy.ALWAYS
        self.accounts.writer.on_written(self._sync.written)
        self.ids = RequestIds(writer)
        self.router = Router(self.ids, clock, self.accounts, self.metrics, random.Random(chance.getrandbits(64)))  # noqa: S311
        self.driver = SimulatedDriver(clock, random.Random(chance.getrandbits(64)), habits)  # noqa: S311
        self.autoscaler = Autoscaler(
            Surroundings(
                pool=self.router,
                driver=self.driver,
                clock=clock,
                metrics=self.metrics,
                lifecycle=lifecycle,
                memory_budget_bytes=machine.memory_budget_bytes,
                cores=machine.cores,
                logs=Path(os.devnull),
                drain_timeout_s=machine.drain_timeout_s,
                on_memory_learned=on_memory_learned,
                chance=random.Random(chance.getrandbits(64)),  # noqa: S311
            )
        )
        self.router.listener = self.autoscaler
        self.router.revision_state = self.autoscaler.state_of
        self.router.expected_start_s = self.autoscaler.expected_cold_start_s
        self._meter = MachineMeter(clock.monotonic_ns(), machine.cores, machine.memory_budget_bytes >> 20, {})
        self._write_machine()

    def call(
        self,
        name: str,
        work: Work,
        on_end: Callable[[SimulatedCall], None],
        *,
        wait_s: float | None = None,
        size_bytes: int = 0,
        is_probe: bool = False,
    ) -> SimulatedCall:
        """Make one call, whose body has come. Return it where it was accepted. Raise ServeError."""
        gate = self.router.resolve(name, None)
        gate.check_queue()
        timeout_s = gate.revision.spec.timeout
        call = SimulatedCall(
            self.ids.next(), gate.key, work, self.clock.monotonic_ns(), timeout_s, wait_s, size_bytes, on_end
        )
        call.is_probe = is_probe
        gate.room.take(len(call.body))
        self.calls.append(call)
        try:
            gate.submit(call)
        except ServeError:
            gate.room.release(len(call.body))
            self.calls.remove(call)
            raise
        return call

    async def close(self) -> None:
        """Drain and end, as SIGTERM makes a platform do."""
        self.router.is_draining = True
        drained_by_ns = self.clock.monotonic_ns() + round(self.machine.drain_timeout_s * NS_PER_S)
        while any(not call.is_done for call in self.calls) and self.clock.monotonic_ns() < drained_by_ns:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)  # the doors hear of it; here nobody pays for looking
        self.router.end_drain()
        left_s = (drained_by_ns - self.clock.monotonic_ns()) / NS_PER_S
        await self.autoscaler.shutdown(max(_LAST_EXITS_S, left_s))
        await self.driver.close()
        self._write_machine(ended=True)
        await self._sync.close()
        self.accounts.close()
        self.disk.synced(self.disk.sizes(self.journal.origin.writer))
        self.safe_until_ns = self.clock.monotonic_ns() + 1

    def bury(self) -> None:
        """Let go of what a killed platform had open."""
        self.is_dead = True
        self.autoscaler._scaler.is_closing = True  # noqa: SLF001
        if self.journal._descriptor >= 0:  # noqa: SLF001 - a process that dies closes without being asked
            os.close(self.journal._descriptor)  # noqa: SLF001
            self.journal._descriptor = -1  # noqa: SLF001

    def _write(self, descriptor: int, data: bytes) -> int:
        return len(data) if self.is_dead else self.disk.write(descriptor, data)

    def _synced(self, began_ns: int) -> None:
        self.safe_until_ns = began_ns

    def _write_machine(self, *, ended: bool = False) -> None:
        now_ns = self.clock.monotonic_ns()
        state = self._meter.sample(now_ns, {})
        line = records.machine(state, self.journal.origin, mono_ns=now_ns, wall_ns=self.clock.wall_ns(), ended=ended)
        self.journal.append(line)
        self.accounts.writer.flush()
