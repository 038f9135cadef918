"""A small world for scaling stories: a pool that really queues, a driver whose processes take time, one clock."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoscaler.drivers.base import DriverError, ReplicaObserver, StartedReplica
from autoscaler.loop import Autoscaler
from autoscaler.surroundings import Surroundings
from serve.core.clock import NS_PER_S
from serve.core.errors import ServeError
from serve.core.events import Drained, Event, ExitReason, Failed, LoadOrder, Phase, PhaseDone, Ready, Stats
from serve.core.frames import Frame
from serve.core.ids import ReplicaId, RevisionKey
from serve.core.lifecycle import Lifecycle
from serve.core.link import FrameLink, Link
from serve.core.metrics import Metrics
from serve.core.revision import Revision
from serve.core.scaling import Demand, DemandListener, Exited, ReplicaInfo
from serve.core.spec import DeploymentSpec

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
    sock: socket.socket
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
        self._pid = 1000
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
        self._pid += 1
        process = Process(order, self._pid, behaviour, observer, self._clock.monotonic_ns(), socket.socket())
        self.processes[order.replica_id] = process
        if not behaviour.never_ready:
            process.pending.append(self._loop.call_later(behaviour.load_s, self._loaded, process))
        return StartedReplica(process.pid, FrameLink(process.sock, NoReceiver()))

    def drain(self, replica_id: ReplicaId) -> None:
        self.drains.append(replica_id)
        process = self.processes[replica_id]
        if not process.behaviour.never_drains:
            process.pending.append(self._loop.call_later(process.behaviour.drain_s, self._drained, process))

    def kill(self, replica_id: ReplicaId, reason: ExitReason) -> None:
        self.kills.append((replica_id, reason))
        process = self.processes.get(replica_id)
        if process is not None:
            process.pending.append(self._loop.call_later(0.001, self.end, process, reason, "killed"))

    def crash(self, replica_id: str, message: str = "killed by SIGSEGV") -> None:
        self.end(self.processes[replica_id], ExitReason.CRASHED, message)

    def report(self, replica_id: str, event: Event) -> None:
        self.processes[replica_id].observer.replica_event(ReplicaId(replica_id), event)

    def end(self, process: Process, reason: ExitReason, message: str) -> None:
        if self.processes.pop(process.order.replica_id, None) is None:
            return
        process.sock.close()
        for handle in process.pending:
            handle.cancel()
        exited = Exited(ReplicaId(process.order.replica_id), reason, self._clock.monotonic_ns(), None, None, message)
        process.observer.replica_exited(exited)

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


@dataclass(eq=False)
class Request:
    duration_s: float
    asked_ns: int
    answered_ns: int = 0
    replica: str = ""
    error: ServeError | None = None


@dataclass
class Slot:
    info: ReplicaInfo
    is_open: bool = False
    inside: dict[Request, asyncio.TimerHandle] = field(default_factory=dict)
    phases: dict[Phase, int] = field(default_factory=dict)


@dataclass
class Gate:
    concurrency: int
    waiting: deque[Request] = field(default_factory=deque)
    in_flight: int = 0
    integral_ns: int = 0
    peak: int = 0
    arrivals: int = 0
    changed_ns: int = 0
    last_active_ns: int = 0


class FakePool:
    """Queues requests and sends them to ready replicas, by the protocol of `serve.core.scaling.ReplicaPool`."""

    def __init__(self, clock: LoopClock) -> None:
        self.listener: DemandListener
        self.gates: dict[RevisionKey, Gate] = {}
        self.replicas: dict[str, Slot] = {}
        self.gone: list[Exited] = []
        self.readings = 0
        self._clock = clock
        self._loop = asyncio.get_running_loop()

    def ask(self, key: RevisionKey, duration_s: float, count: int = 1) -> list[Request]:
        """Let requests arrive now."""
        gate, now_ns = self.gates[key], self._clock.monotonic_ns()
        was_quiet = not self._load(gate) and now_ns - gate.last_active_ns > NS_PER_S
        requests = [Request(duration_s, now_ns) for _ in range(count)]
        for request in requests:
            self._change(gate)
            gate.arrivals += 1
            gate.waiting.append(request)
            gate.peak = max(gate.peak, self._load(gate))
            self._dispatch(key)
            if gate.waiting or was_quiet:
                self.listener.poke(key)
        return requests

    def give_up(self, key: RevisionKey) -> None:
        """Callers of everything that waits leave."""
        self._change(self.gates[key])
        self.gates[key].waiting.clear()

    def demand(self, key: RevisionKey, now_ns: int) -> Demand:
        self.readings += 1
        gate = self.gates[key]
        self._change(gate)
        load = self._load(gate)
        peak, gate.peak = gate.peak, load
        last_active_ns = now_ns if load else gate.last_active_ns
        return Demand(gate.in_flight, len(gate.waiting), gate.integral_ns, peak, gate.arrivals, last_active_ns)

    def replica_assigned(self, info: ReplicaInfo) -> None:
        assert info.id not in self.replicas
        self.replicas[info.id] = Slot(info)

    def replica_ready(self, replica_id: ReplicaId, link: Link, ready: Ready, phases: dict[Phase, int]) -> None:
        slot = self.replicas[replica_id]
        slot.is_open, slot.phases = True, phases
        self._dispatch(slot.info.key)

    def replica_retired(self, replica_id: ReplicaId) -> None:
        slot = self.replicas[replica_id]
        assert slot.is_open, "retired twice, or before it was ready"
        slot.is_open = False
        if not slot.inside:
            self._loop.call_soon(self.listener.replica_empty, replica_id)

    def replica_gone(self, exited: Exited) -> None:
        slot = self.replicas.pop(exited.id)
        self.gone.append(exited)
        gate = self.gates[slot.info.key]
        self._change(gate)
        for request, handle in slot.inside.items():
            handle.cancel()
            gate.in_flight -= 1
            gate.waiting.appendleft(request)
        self._dispatch(slot.info.key)
        if gate.waiting:
            self.listener.poke(slot.info.key)

    def replica_in_flight(self, replica_id: ReplicaId) -> int:
        return len(self.replicas[replica_id].inside)

    def fail_pending(self, key: RevisionKey, error: ServeError) -> None:
        gate = self.gates[key]
        self._change(gate)
        waiting, gate.waiting = gate.waiting, deque()
        for request in waiting:
            request.error = error

    def open_replicas(self, key: RevisionKey) -> list[str]:
        return [name for name, slot in self.replicas.items() if slot.info.key == key and slot.is_open]

    def _load(self, gate: Gate) -> int:
        return gate.in_flight + len(gate.waiting)

    def _change(self, gate: Gate) -> None:
        now_ns = self._clock.monotonic_ns()
        gate.integral_ns += self._load(gate) * (now_ns - gate.changed_ns)
        gate.changed_ns = now_ns
        if self._load(gate):
            gate.last_active_ns = now_ns

    def _dispatch(self, key: RevisionKey) -> None:
        gate = self.gates[key]
        slots = [slot for slot in self.replicas.values() if slot.is_open and slot.info.key == key]
        while gate.waiting and slots:
            slot = min(slots, key=lambda slot: len(slot.inside))
            if len(slot.inside) >= gate.concurrency:
                return
            request = gate.waiting.popleft()
            gate.in_flight += 1
            slot.inside[request] = self._loop.call_later(request.duration_s, self._answered, key, slot, request)

    def _answered(self, key: RevisionKey, slot: Slot, request: Request) -> None:
        gate = self.gates[key]
        self._change(gate)
        del slot.inside[request]
        gate.in_flight -= 1
        request.answered_ns, request.replica = self._clock.monotonic_ns(), slot.info.id
        self._dispatch(key)
        if not slot.inside and not slot.is_open:
            self.listener.replica_empty(slot.info.id)


class World:
    """One autoscaler on virtual time, with everything around it."""

    def __init__(
        self, lifecycle: Lifecycle, logs: Path, budget_bytes: int, cores: int, drain_timeout_s: float, seed: int
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.clock = LoopClock()
        self.metrics = Metrics()
        self.pool = FakePool(self.clock)
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
        settings = DeploymentSpec(name=name, **{"concurrency": 1, "engine": "scripted", **spec})
        self.pool.gates.setdefault(key, Gate(settings.concurrency or 1))
        return Revision(key, settings, "0" * 64, "/nowhere", "model", 1, memory_mib * MIB, None)

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
        """Return how many timers the loop holds."""
        handles: list[asyncio.TimerHandle] = self.loop._scheduled  # type: ignore[attr-defined]
        return sum(not handle.cancelled() for handle in handles)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let virtual time pass until something has happened; the test's timeout is the limit."""
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)

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
