"""What a step of a story does to the platform that lives at that time."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from serve.core.clock import NS_PER_S
from serve.core.errors import ServeError
from serve.core.ids import RevisionKey
from serve.core.lifecycle import Lifecycle
from simulator.disk import Killed
from simulator.habits import Start
from tests.sim.scenario import Step, bad_start
from tests.sim.truth import check_refusal

if TYPE_CHECKING:
    from tests.sim.world import World

T = TypeVar("T")


class Acts:
    """Owned by the loop of the platform that it acts on. `end` ends the platform's life in an orderly way."""

    def __init__(self, world: World, lifecycle: Lifecycle, end: Callable[[], None]) -> None:
        self.timers: list[asyncio.TimerHandle] = []
        self._world = world
        self._life = world.life
        self._platform = world.life.platform
        self._lifecycle = lifecycle
        self._end = end

    def do(self, step: Step) -> None:
        getattr(self, f"_{step.act.name.lower()}")(step)

    def no_more(self) -> None:
        """There are no steps left, or what is left is for the next platform."""
        for timer in self.timers:
            timer.cancel()
        self._end()

    def heal(self) -> None:
        """End every fault that has not ended by itself."""
        self._platform.disk.heal()
        for habits in self._world.scenario.habits.values():
            habits.start = lambda _chance: Start.FINE

    def _pick(self, things: list[T], choice: int) -> T | None:
        return things[choice % len(things)] if things else None

    # Callers ---------------------------------------------------------------------------------------------------------

    def _call(self, step: Step) -> None:
        assert step.work is not None
        key = self._key_of(step.name)
        try:
            call = self._platform.call(step.name, step.work, self._world.ended, wait_s=step.wait_s)
        except ServeError as error:
            self._world.note(f"refused {error.code}")
            check_refusal(self._platform, key, error)
            return
        self._world.note(f"{call.request_id} to {call.key}")

    def _leave(self, step: Step) -> None:
        call = self._pick([call for call in self._platform.calls if not call.is_done], step.choice)
        if call is not None:
            call.leave()

    def _key_of(self, name: str) -> RevisionKey | None:
        route = self._platform.router.routes.get(name)
        return RevisionKey(name, route.weights[0][0]) if route is not None and route.weights else None

    # Replicas --------------------------------------------------------------------------------------------------------

    def _kill(self, step: Step) -> None:
        replica = self._pick(list(self._platform.driver.running.values()), step.choice)
        if replica is not None:
            self._world.note(f"{replica.order.replica_id} is killed with {replica.inside} inside")
            replica.die(None, signal.SIGKILL if step.choice & 256 else signal.SIGSEGV)

    def _stall(self, step: Step) -> None:
        replica = self._pick(list(self._platform.driver.running.values()), step.choice)
        if replica is not None:
            replica.stall([0.05, 0.8, 4.0][step.choice % 3])

    def _bad_starts(self, step: Step) -> None:
        start = bad_start(step.choice)
        self._world.scenario.habits[step.name].start = lambda chance: start if chance.random() < 0.7 else Start.FINE

    def _good_starts(self, step: Step) -> None:
        self._world.scenario.habits[step.name].start = lambda _chance: Start.FINE

    # Clock and disk --------------------------------------------------------------------------------------------------

    def _step_wall(self, step: Step) -> None:
        self._platform.clock.step_wall([-3600, -2, 5, 86_400][step.choice % 4] * NS_PER_S)

    def _disk_full(self, step: Step) -> None:
        self._platform.disk.free_bytes = [0, step.choice % 3000][step.choice % 2]

    def _disk_free(self, step: Step) -> None:
        self._platform.disk.heal()

    def _sync_fails(self, step: Step) -> None:
        self._platform.disk.fails_to_sync = True

    # Control plane ---------------------------------------------------------------------------------------------------

    def _deploy(self, step: Step) -> None:
        specs = {spec["name"]: spec for spec in self._world.scenario.specs}
        spec = specs[step.name] | {"idle": [0.5, 3.0][step.choice % 2]}
        content = str(step.choice).encode()

        async def deploy() -> None:
            try:
                number = await self._life.control.deploy(spec, content)
                self._world.promised[step.name] = number
                self._world.note(f"deployed {step.name} {number}")
            except ServeError as error:
                self._world.note(f"not deployed: {error.code}")

        self._lifecycle.spawn("deploy", deploy())

    def _rollback(self, step: Step) -> None:
        async def rollback() -> None:
            try:
                number = await self._life.control.deployments.rollback(step.name, None)
                self._world.note(f"rolled back {step.name} to {number}")
            except ServeError as error:
                self._world.note(f"not rolled back: {error.code}")

        self._lifecycle.spawn("rollback", rollback())

    def _delete(self, step: Step) -> None:
        self._world.promised.pop(step.name, None)

        async def delete() -> None:
            try:
                await self._life.control.deployments.delete(step.name)
                self._world.note(f"deleted {step.name}")
            except ServeError as error:
                self._world.note(f"not deleted: {error.code}")

        self._lifecycle.spawn("delete", delete())

    # The platform ----------------------------------------------------------------------------------------------------

    def _kill_platform(self, step: Step) -> None:
        """At once, in the next write to the journal, or when the next answer has left."""
        where = [None, "before", "within", "after", "answered"][step.choice % 5]
        if where is None:
            raise Killed
        if where == "answered":
            self._life.dies_answering = True
        else:
            self._platform.disk.dies = where

    def _lose_power(self, step: Step) -> None:
        """At once, or when the next answer has left."""
        self._life.lost_power = True
        if step.choice % 2:
            raise Killed
        self._life.dies_answering = True

    def _restart(self, step: Step) -> None:
        self.no_more()
