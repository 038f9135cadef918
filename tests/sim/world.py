"""One story from its first step to its audit: platforms that live one after the other on one disk and one clock."""

from __future__ import annotations

import asyncio
import hashlib
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from activator.calls import Reply
from billing.journal import JournalError
from serve.control.registry import StoredRevision
from serve.core.clock import NS_PER_S
from serve.core.lifecycle import Lifecycle
from simulator.callers import SimulatedCall
from simulator.disk import Killed, SimulatedDisk
from simulator.loop import SimulatedClock, VirtualLoop
from simulator.platform import SimulatedPlatform
from tests.sim.acts import Acts
from tests.sim.audit import audit
from tests.sim.control import PaperControl, stored_revision
from tests.sim.invariants import Watch
from tests.sim.scenario import Scenario, Step
from tests.sim.truth import check_outcome
from tests.sim.violation import must

RAM = Path("/dev/shm")
QUIET_S = 45.0
"""After the last step: longer than any timeout, pause or idle time of the stories."""


@dataclass
class Life:
    """One platform of a story, and what became of its calls."""

    platform: SimulatedPlatform
    control: PaperControl
    watch: Watch
    was_killed: bool = False
    lost_power: bool = False
    dies_answering: bool = False
    """When the next answer has left."""
    lost_records: bool = False
    """The disk refused the last ones."""


class World:
    """Owned by whoever runs it. `build` may put other pieces into a platform: that is how defects are planted."""

    def __init__(
        self,
        seed: int,
        folder: Path,
        build: Callable[..., SimulatedPlatform] = SimulatedPlatform,
        verbose: bool = False,
    ) -> None:
        self.scenario = Scenario.of(seed)
        self._chance = random.Random(f"world {seed}")
        self.folder = folder
        self.promised = {spec["name"]: 1 for spec in self.scenario.specs}
        """Revisions that were deployed and nobody has begun to delete."""
        self.lives: list[Life] = []
        self.life: Life
        self.clock = SimulatedClock()
        self.disk = SimulatedDisk(folder / "journal", random.Random(f"disk {seed}"))
        self._build = build
        self._verbose = verbose
        self._trace = hashlib.blake2b(digest_size=8)
        self._steps = list(self.scenario.steps)
        self._begun_ns = self.clock.monotonic_ns()

    def run(self) -> str:
        """Live it all. Return the hash of the trace. Raise Violation."""
        while True:
            loop = VirtualLoop(self.clock, self._look)
            chance = self._dice()
            loop.job_s = lambda chance=chance: chance.uniform(0.0, self.scenario.job_s)  # type: ignore[misc]
            try:
                loop.run_until_complete(self._live(loop))
                must(self._steps or not loop.timers(), f"timers are left: {loop.timers()}")
                loop.close()
            except Killed:
                self._bury(loop)
            except BaseException:
                self._bury(loop)
                raise
            if not self._steps and not self.lives[-1].was_killed:
                break
            self.clock.advance(NS_PER_S // 10)  # no platform is there again at once
        audit(self)
        return self._trace.hexdigest()

    def _dice(self) -> random.Random:
        """Return dice of their own for somebody: what one draws changes nothing for others."""
        return random.Random(self._chance.getrandbits(64))

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        line = f"{(self.clock.monotonic_ns() - self._begun_ns) / NS_PER_S:.6f} {text}"
        self._trace.update(line.encode())
        if self._verbose:
            print(line, flush=True)  # noqa: T201

    def ended(self, call: SimulatedCall) -> None:
        life = self.life
        if life.platform.is_dead:
            return
        call.ended_ns = self.clock.monotonic_ns()
        self.note(f"{call.request_id} ends {call.status} {type(call.outcome).__name__}")
        check_outcome(life.platform, call)
        if life.dies_answering and isinstance(call.outcome, Reply):
            raise Killed

    # One platform ----------------------------------------------------------------------------------------------------

    async def _live(self, loop: VirtualLoop) -> None:
        scenario, chance = self.scenario, self._dice()
        disk = self.disk
        disk.heal()  # no platform starts on a disk that refuses
        loop.before_job = lambda job: disk.check_sync() if job.__name__ == "sync" else None
        async with Lifecycle() as lifecycle:
            platform = self._build(
                scenario.machine,
                self.clock,
                chance,
                scenario.habits,
                disk,
                lifecycle,
                lambda key, size_bytes: self.life.control.publisher.memory_learned(key, size_bytes),
            )
            control = PaperControl(platform, self.folder, lifecycle)
            self.life = Life(platform, control, Watch(platform))
            self.lives.append(self.life)
            await control.open([] if len(self.lives) > 1 else self._initial())
            for name, number in self.promised.items():
                deployment = control.registry.deployments.get(name)
                must(deployment and number in deployment.revisions, f"{name} revision {number} is lost")
            done = asyncio.Event()
            acts = Acts(self, lifecycle, done.set)
            self._schedule(loop, acts)
            await done.wait()
            await self._end(platform, control, acts)
            lifecycle.stop()
        control.registry.close()

    def _schedule(self, loop: VirtualLoop, acts: Acts) -> None:
        """Set a timer for every step that is left; those that a dead platform missed come at once."""
        now_ns = self.clock.monotonic_ns()
        for step in self._steps:
            due_ns = max(now_ns, self._begun_ns + round(step.at_s * NS_PER_S))
            acts.timers.append(loop.call_later((due_ns - now_ns) / NS_PER_S, self._take, step, acts))
        if not self._steps:
            loop.call_soon(acts.no_more)

    def _take(self, step: Step, acts: Acts) -> None:
        self._steps.remove(step)
        self.note(f"{step.act} {step.name}")
        acts.do(step)
        if not self._steps:
            acts.no_more()

    async def _end(self, platform: SimulatedPlatform, control: PaperControl, acts: Acts) -> None:
        """Let everything come to rest where the story is over, then shut down."""
        if not self._steps:
            acts.heal()
            await asyncio.sleep(QUIET_S)
            must(all(call.is_done for call in platform.calls), "calls are left")
            for fleet in platform.autoscaler._scaler.fleets.values():
                least = fleet.settings.min if fleet.is_reachable else 0
                must(not fleet.starting() or fleet.failure, f"{fleet.key} starts for ever")
                must(fleet.live <= least or fleet.failure, f"{fleet.key} does not go back to {least}")
            pins, pinned = control.store.pins, control.deployments._pins
            is_changing = bool(control.deployments.claims)
            must(is_changing or sum(pins.values()) == len(pinned), f"{pins} are pinned for {list(pinned)}")
        control.deployments.close()
        try:
            await platform.close()
        except JournalError:
            must(
                self.disk.free_bytes is not None or self.disk.fails_to_sync,
                "the disk takes all, and the journal is not closed",
            )
            self.life.lost_records = True
        must(not platform.driver.running, "replicas outlive their platform")
        await asyncio.sleep(1.0)  # what is on its way on links of dead replicas
        self.note("closed")

    def _look(self, is_settled: bool) -> None:
        life = getattr(self, "life", None)
        if is_settled and life is not None:
            life.watch.check()

    def _bury(self, loop: VirtualLoop) -> None:
        life = self.lives[-1]
        life.was_killed = True
        self.note("the platform is dead")
        # What is still run of it has no effect, and its time is its own.
        self.clock = SimulatedClock(self.clock.monotonic_ns(), self.clock.wall_ns())
        for call in life.platform.calls:
            call.is_done = True  # nobody hears of it any more
        life.platform.bury()
        loop.bury()
        life.control.bury()
        self.disk.dies = None
        if life.lost_power:
            self.disk.lose_power()

    def _initial(self) -> list[StoredRevision]:
        scenario = self.scenario
        return [
            stored_revision(
                spec,
                memory_bytes=scenario.habits[spec["name"]].memory_bytes,
                batchable=scenario.habits[spec["name"]].is_batchable,
                wall_ns=self.clock.wall_ns(),
            )
            for spec in scenario.specs
        ]


@contextmanager
def a_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="servezero-sim-", dir=RAM if RAM.is_dir() else None) as folder:
        yield Path(folder)


def run(seed: int, build: Callable[..., SimulatedPlatform] = SimulatedPlatform, *, verbose: bool = False) -> str:
    """Live the story of `seed`; return the hash of its trace. Raise Violation, Stuck or Spinning."""
    with a_folder() as folder:
        return World(seed, folder, build, verbose).run()
