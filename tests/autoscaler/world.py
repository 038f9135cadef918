"""A small world for scaling stories: a pool that really queues, a driver whose processes take time, one clock."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from activator.accounts import Accounts
from activator.deadlines import Deadlines
from autoscaler.drivers.base import DriverError, ReplicaObserver, StartedReplica
from autoscaler.loop import Autoscaler
from autoscaler.surroundings import Surroundings
from serve.core.clock import NS_PER_S
from serve.core.events import Drained, Event, ExitReason, Failed, LoadOrder, Phase, PhaseDone, Ready, Stats
from serve.core.frames import Frame
from serve.core.ids import ReplicaId, RevisionKey
from serve.core.lifecycle import Lifecycle
from serve.core.metrics import Metrics
from serve.core.revision import Revision
from serve.core.scaling import Exited
from serve.core.spec import DeploymentSpec
from simulator.paper import Inside, PaperReplica
from tests.autoscaler.pool import Pool, Request

__all__ = ["MIB", "Request", "World", "a_world"]

MIB = 1 << 20


class LoopClock:
    """The clock of a loop under virtual time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def monotonic_ns(self) -> int:
        return round(self._loop.time() * NS_PER_S) + 1000 * NS_PER_S

    def wall_ns(self) -> int:
        return self.monotonic_ns() + 1_700_000_000 * NS_PER_S


class NoReceiver:
    def frames_received(self, frames: list[Frame]) -> None:
        raise AssertionError("nothing is sent in these stories")

    def link_lost(self, reason: str) -> None:
        pass


@dataclass
class Behaviour:
    """What processes of a deployment do."""

    spawn_s: float = 0.01
    load_s: float = 0.09
    drain_s: float = 0.01
    peak_bytes: int = 40 * MIB
    cannot_spawn: str = ""
    fails: Failed | None = None
    dies_loading: bool = False
    never_ready: bool = False
    never_drains: bool = False


@dataclass
class Process:
    order: LoadOrder
    pid: int
    behaviour: Behaviour
    observer: ReplicaObserver
    started_ns: int
    replica: PaperReplica
    is_ready: bool = False
    pending: list[asyncio.TimerHandle] = field(default_factory=list)


class FakeDriver:
    """Starts processes that exist only on paper, by the contract of `autoscaler.drivers.base`."""

    def __init__(self, clock: LoopClock) -> None:
        self.behaviours: dict[str, Behaviour] = {}
        self.processes: dict[str, Process] = {}
        """Those that run now."""
        self.ordered: list[str] = []
        """Every replica whose start was asked for, in order."""
        self.ordered_at_ns: list[int] = []
        self.kills: list[tuple[str, ExitReason]] = []
        self.drains: list[str] = []
        self.log_files: list[Path] = []
        self._clock = clock
        self._pid = -1000  # no process of this machine, whose kernel is asked about it
        self._loop = asyncio.get_running_loop()

    def behaviour(self, name: str) -> Behaviour:
        return self.behaviours.setdefault(name, Behaviour())

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def start(self, order: LoadOrder, observer: ReplicaObserver, log_file: Path) -> StartedReplica:
        behaviour = self.behaviour(order.name)
        self.ordered.append(order.replica_id)
        self.ordered_at_ns.append(self._clock.monotonic_ns())
        self.log_files.append(log_file)
        await asyncio.sleep(behaviour.spawn_s)
        if behaviour.cannot_spawn:
            raise DriverError(behaviour.cannot_spawn)
        self._pid -= 1
        replica = PaperReplica(self._clock)
        process = Process(order, self._pid, behaviour, observer, self._clock.monotonic_ns(), replica)
        replica.on_request = functools.partial(self._take, process)
        self.processes[order.replica_id] = process
        if not behaviour.never_ready:
            process.pending.append(self._loop.call_later(behaviour.load_s, self._loaded, process))
        return StartedReplica(process.pid, replica.connect(NoReceiver()))

    def drain(self, replica_id: ReplicaId) -> None:
        self.drains.append(replica_id)
        process = self.processes[replica_id]
        if not process.behaviour.never_drains:
            process.pending.append(self._loop.call_later(process.behaviour.drain_s, self._drained, process))

    def kill(self, replica_id: ReplicaId, reason: ExitReason) -> None:
        self.kills.append((replica_id, reason))
        process = self.processes.get(replica_id)
        if process is not None:
            process.pending.append(
                self._loop.call_later(
                    0.001, self.end, process, reason, f"{replica_id} was killed by the platform ({reason.value})"
                )
            )

    def crash(self, replica_id: str, how: str = "was ended by signal SIGSEGV", number: int = signal.SIGSEGV) -> None:
        self.end(self.processes[replica_id], ExitReason.CRASHED, f"{replica_id} {how}", number)

    def kill_from_outside(self, replica_id: str) -> None:
        self.crash(replica_id, "was ended by signal SIGKILL", signal.SIGKILL)

    def report(self, replica_id: str, event: Event) -> None:
        self.processes[replica_id].observer.replica_event(ReplicaId(replica_id), event)

    def end(self, process: Process, reason: ExitReason, message: str, number: int | None = None) -> None:
        if self.processes.pop(process.order.replica_id, None) is None:
            return
        process.replica.link.read_rest()
        process.replica.link.hang_up()
        for handle in process.pending:
            handle.cancel()
        exited = Exited(ReplicaId(process.order.replica_id), reason, self._clock.monotonic_ns(), None, number, message)
        process.observer.replica_exited(exited)

    def _take(self, process: Process, inside: Inside) -> None:
        """Answer a request after as long as its body says."""
        answer = functools.partial(process.replica.answer, [inside.stream])
        process.pending.append(self._loop.call_later(float(inside.body), answer))

    def _loaded(self, process: Process) -> None:
        now_ns = self._clock.monotonic_ns()
        replica_id = process.order.replica_id
        if process.behaviour.dies_loading:
            self.end(process, ExitReason.CRASHED, "exit status 1")
        elif process.behaviour.fails is not None:
            self.report(replica_id, process.behaviour.fails)
            self.end(process, ExitReason.LOAD_FAILED, "exit status 3")
        else:
            self.report(replica_id, PhaseDone(Phase.MAP, process.started_ns, process.started_ns))
            self.report(replica_id, PhaseDone(Phase.LOAD, process.started_ns, now_ns))
            peak_bytes = process.behaviour.peak_bytes
            process.is_ready = True
            self.report(replica_id, Ready(now_ns, "scripted", "1", (), (), False, peak_bytes, peak_bytes))

    def _drained(self, process: Process) -> None:
        self.report(process.order.replica_id, Drained(self._clock.monotonic_ns(), 0))
        self.end(process, ExitReason.DRAINED, "drained")


class World:
    """One autoscaler on virtual time, with everything around it."""

    def __init__(
        self, lifecycle: Lifecycle, logs: Path, budget_bytes: int, cores: int, drain_timeout_s: float, seed: int
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.clock = LoopClock()
        self.metrics = Metrics()
        self.pool = Pool(self.clock, self.metrics, logs)
        self.driver = FakeDriver(self.clock)
        self.learned: list[tuple[RevisionKey, int]] = []
        self.lifecycle = lifecycle
        self.autoscaler = Autoscaler(
            Surroundings(
                pool=self.pool,
                driver=self.driver,
                clock=self.clock,
                metrics=self.metrics,
                lifecycle=lifecycle,
                memory_budget_bytes=budget_bytes,
                cores=cores,
                logs=logs,
                drain_timeout_s=drain_timeout_s,
                on_memory_learned=lambda key, size: self.learned.append((key, size)),
                chance=random.Random(seed),
            )
        )
        self.pool.listener = self.autoscaler

    def revision(self, name: str = "digits", number: int = 1, *, memory_mib: int = 40, **spec: Any) -> Revision:
        """Return a revision the pool knows; concurrency 1 unless given."""
        key = RevisionKey(name, number)
        usual = {"concurrency": 1, "engine": "scripted", "execution_timeout": 1e6}
        settings = DeploymentSpec(name=name, **(usual | spec))
        revision = Revision(key, settings, "0" * 64, "/nowhere", "model", 1, memory_mib * MIB, None)
        self.pool.add_revision(revision)
        return revision

    def add(self, name: str = "digits", number: int = 1, *, reachable: bool = True, **spec: Any) -> RevisionKey:
        revision = self.revision(name, number, **spec)
        self.autoscaler.add(revision, reachable=reachable)
        return revision.key

    def running(self, name: str = "digits") -> list[str]:
        return [replica for replica, process in self.driver.processes.items() if process.order.name == name]

    def stats(self, replica_id: str, peak_mib: int) -> None:
        """Let a replica report that it became idle."""
        now_ns = self.clock.monotonic_ns()
        event = Stats(now_ns, 0, 1, peak_mib * MIB, peak_mib * MIB)
        self.autoscaler.replica_event(ReplicaId(replica_id), event)

    def reasons(self, name: str = "digits") -> list[str]:
        return [record.reason for record in self.autoscaler.decisions(name)]

    def steps(self, name: str = "digits") -> list[tuple[int, int]]:
        """Return the changes in the number of replicas, in order."""
        records = self.autoscaler.decisions(name)
        pairs = [(record.replicas_before, record.replicas_after) for record in records]
        return [(before, after) for before, after in pairs if before != after]

    def timers(self) -> int:
        """Return how many timers the loop holds, those of the gates and the books excepted."""
        handles: list[asyncio.TimerHandle] = self.loop._scheduled  # type: ignore[attr-defined]
        owners = [getattr(handle._callback, "__self__", None) for handle in handles if not handle.cancelled()]  # type: ignore[attr-defined]
        return sum(not isinstance(owner, Deadlines | Accounts) for owner in owners)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let virtual time pass until something has happened; the test's timeout is the limit."""
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def settle(self) -> None:
        """Let what is under way in this instant arrive, without time passing."""
        for _ in range(5):
            await asyncio.sleep(0)

    def now_s(self) -> float:
        return self.loop.time()


@contextlib.asynccontextmanager
async def a_world(
    logs: Path, *, budget_mib: int = 10_000, cores: int = 1000, drain_timeout_s: float = 30.0, seed: int = 0
) -> AsyncIterator[World]:
    """Run a world; at its end every replica must be gone and no timer left."""
    async with Lifecycle() as lifecycle:
        world = World(lifecycle, logs, budget_mib * MIB, cores, drain_timeout_s, seed)
        yield world
        await world.autoscaler.shutdown(5.0)
        assert not world.driver.processes
        assert not world.pool.replicas
        lifecycle.stop()
        world.pool.close()
