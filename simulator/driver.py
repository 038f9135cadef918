"""A driver whose processes exist on paper; what is not processes, such as reasons of exits, is the real one's."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

from autoscaler.drivers.base import DriverError, ReplicaObserver, StartedReplica
from autoscaler.drivers.oom import OomKills
from autoscaler.drivers.replica import Replicas
from serve.core.clock import Clock
from serve.core.events import ExitReason, LoadOrder
from serve.core.ids import ReplicaId
from simulator.habits import Habits, Start
from simulator.replica import SimulatedReplica

_NOWHERE = Path(os.devnull)


class SimulatedDriver:
    """Implements `autoscaler.drivers.base.Driver`. Owned by the running loop."""

    def __init__(self, clock: Clock, chance: random.Random, habits: dict[str, Habits]) -> None:
        """`habits`: by name of the deployment; one without any gets the usual."""
        self.running: dict[ReplicaId, SimulatedReplica] = {}
        """Processes that live, those nobody was told of yet included."""
        self.begun: list[SimulatedReplica] = []
        """All whose start the platform heard of, dead or alive, in order."""
        self._clock = clock
        self._chance = chance
        self._habits = habits
        self._replicas = Replicas(clock)
        self._oom_kills = self._replicas.oom_kills = SimulatedOomKills()
        self._last_pid = 0

    async def open(self) -> None:
        pass

    async def start(self, order: LoadOrder, observer: ReplicaObserver, log_file: Path) -> StartedReplica:  # noqa: ARG002
        habits = self._habits.setdefault(order.name, Habits())
        chance = random.Random(self._chance.getrandbits(64))  # noqa: S311 - dice, no secret
        async with self._replicas.starting(order, observer, _NOWHERE) as (life, undo):
            start = habits.start(chance)
            await asyncio.sleep(habits.spawn_s(chance))
            if start is Start.NO_PROCESS:
                raise DriverError(f"{order.replica_id} got no process")
            if start is Start.SPAWN_HANGS:
                await asyncio.Future[None]()
            self._last_pid -= 1  # no process of this machine, whose kernel will be asked about it
            replica = SimulatedReplica(
                self._last_pid, order, habits, self._clock, chance, self._died, self._oom_kills.count
            )
            self.running[life.id] = replica
            undo.callback(replica.kill)
            link = replica.connect(life)
            replica.load(start)
            await asyncio.sleep(habits.lag_s(chance))
            undo.pop_all()
            self.begun.append(replica)
            life.begin(replica, link)
            return StartedReplica(replica.pid, link)

    def drain(self, replica_id: ReplicaId) -> None:
        self._replicas.drain(replica_id)

    def kill(self, replica_id: ReplicaId, reason: ExitReason) -> None:
        self._replicas.kill(replica_id, reason)

    async def close(self) -> None:
        await self._replicas.close()
        for replica in list(self.running.values()):  # starts that were called off
            replica.kill()
            await replica.exited

    def _died(self, replica: SimulatedReplica) -> None:
        del self.running[ReplicaId(replica.order.replica_id)]


class SimulatedOomKills(OomKills):
    """The kernel's counter on paper."""

    def __init__(self) -> None:
        self._kills = 0
        super().__init__(_NOWHERE)

    def count(self) -> None:
        self._kills += 1

    def _read(self) -> int:
        return self._kills
