"""Lives recorded traffic again, in virtual time: the real gate, accounts, autoscaler and decisions under any settings.

Only the replicas are on paper. Their starts take as long as the recorded start that is nearest in time, each request
runs for its recorded service time, and both do so whatever the settings are. Nothing goes wrong, and nobody else is on
the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from billing.ledger import Ledger, reading
from billing.lives import read_lives
from billing.prices import PriceBook
from serve.core.clock import NS_PER_S, NS_PER_US
from serve.core.errors import PublishError, ServeError
from serve.core.lifecycle import Lifecycle
from serve.core.revision import Revision, Route, State
from simulator.callers import SimulatedCall
from simulator.disk import SimulatedDisk
from simulator.forecast.figures import Figures, Outcome, costs_of
from simulator.forecast.recorded import Arrival, Hold, Recording, Stretch
from simulator.habits import Habits, always
from simulator.loop import SimulatedClock, VirtualLoop
from simulator.platform import Machine, SimulatedPlatform
from simulator.work import Effect, Work

_BEGIN_NS = 1000 * NS_PER_S
_CHECKPOINT_S = 300.0
_EVER_NS = 1 << 62


@dataclass(frozen=True, slots=True)
class Site:
    """What the platform runs on."""

    memory_budget_bytes: int
    cores: int
    prices: PriceBook


def replay(recording: Recording, revision: Revision, site: Site, folder: Path) -> Figures:
    """Return how it would have been with this revision's settings. `folder`: an empty one, for journal and ledger."""
    machine = Machine(
        memory_budget_bytes=site.memory_budget_bytes,
        cores=site.cores,
        checkpoint_interval_s=_CHECKPOINT_S,
        prices=site.prices,
    )
    outcomes: list[Outcome] = []
    for number, stretch in enumerate(recording.stretches):
        chance = random.Random(number)  # noqa: S311 - dice, no secret
        disk = SimulatedDisk(folder / "journal", chance)
        outcomes += _Again(recording, stretch, revision, machine, disk, chance).live()
    ledger = folder / "ledger.db"
    with closing(Ledger(ledger)) as opened:
        opened.ingest(folder / "journal")
    with reading(ledger) as connection:
        costs = costs_of(connection, revision.key, read_lives(connection), site.prices, -_EVER_NS, _EVER_NS)
    return Figures(outcomes, costs)


class _Again:
    """One platform on paper that sees what a real one saw. Owned by its own loop."""

    def __init__(
        self,
        recording: Recording,
        stretch: Stretch,
        revision: Revision,
        machine: Machine,
        disk: SimulatedDisk,
        chance: random.Random,
    ) -> None:
        self._recording = recording
        self._stretch = stretch
        self._revision = revision
        self._machine = machine
        self._disk = disk
        self._chance = chance
        self._clock = SimulatedClock(_BEGIN_NS + stretch.begin_ns, stretch.wall_ns + stretch.begin_ns)
        self._platform: SimulatedPlatform
        self._unanswered: dict[str, tuple[int, Arrival]] = {}
        self._outcomes: dict[int, Outcome] = {}

    def live(self) -> list[Outcome]:
        """Return how each caller fared, in the order in which they came; probes are none."""
        loop = VirtualLoop(self._clock)
        try:
            loop.run_until_complete(self._live())
        finally:
            loop.bury()
        return [self._outcomes[place] for place in sorted(self._outcomes)]

    async def _live(self) -> None:
        recording, key = self._recording, self._revision.key
        async with Lifecycle() as lifecycle:
            habits = Habits(
                spawn_s=always(0.0),
                load_s=lambda _chance: recording.cold_at_ns(self._stretch, self._now_ns()) / NS_PER_S,
                leave_s=always(recording.leave_ns / NS_PER_S),
                memory_bytes=self._revision.memory_bytes,
                is_batchable=self._revision.signature is not None and self._revision.signature.batchable,
            )
            self._platform = platform = SimulatedPlatform(
                self._machine, self._clock, self._chance, {key.name: habits}, self._disk, lifecycle
            )
            platform.router.add_revision(self._revision)
            platform.autoscaler.add(self._revision, reachable=not self._stretch.holds)
            platform.router.route(Route(key.name, State.COLD, ((key.number, 1),), {key.number: self._revision}))
            for hold in self._stretch.holds:
                lifecycle.spawn("publishing", self._publish(hold))
            for place, arrival in enumerate(self._stretch.arrivals):
                await self._until(arrival.at_ns)
                self._call(place, arrival)
            await self._until(self._stretch.end_ns)
            platform.accounts.checkpoint()
            platform.bury()
            lifecycle.stop()
        for place, arrival in self._unanswered.values():
            self._ended(place, arrival, is_cold=False)

    async def _publish(self, hold: Hold) -> None:
        await self._until(hold.begin_ns)
        with contextlib.suppress(PublishError):
            await self._platform.autoscaler.warm(self._revision.key)
        await self._until(hold.end_ns)
        self._platform.autoscaler.set_reachable(self._revision.key, True)
        self._platform.autoscaler.release(self._revision.key)

    def _call(self, place: int, arrival: Arrival) -> None:
        effect = Effect.ERROR if arrival.is_error else Effect.ANSWER
        work = Work(max(1, arrival.run_us), max(1, arrival.rows), effect)
        try:
            call = self._platform.call(self._revision.key.name, work, self._answered, is_probe=arrival.is_probe)
        except ServeError:
            if not arrival.is_probe:
                self._outcomes[place] = Outcome(None, is_cold=False)
        else:
            self._unanswered[call.request_id] = (place, arrival)
        self._platform.calls.clear()  # they are not asked for here, and there are many

    def _answered(self, call: SimulatedCall) -> None:
        place, arrival = self._unanswered.pop(call.request_id)
        if isinstance(call.outcome, ServeError):
            if not arrival.is_probe:
                self._outcomes[place] = Outcome(None, is_cold=False)
        else:
            self._ended(place, arrival, is_cold=call.is_cold)

    def _ended(self, place: int, arrival: Arrival, *, is_cold: bool) -> None:
        if not arrival.is_probe:
            wait_us = (self._now_ns() - arrival.at_ns) // NS_PER_US - arrival.run_us
            self._outcomes[place] = Outcome(max(0, wait_us), is_cold)

    def _now_ns(self) -> int:
        """Return the time since the begin of the tenure."""
        return self._clock.monotonic_ns() - _BEGIN_NS

    async def _until(self, at_ns: int) -> None:
        await asyncio.sleep(max(0, at_ns - self._now_ns()) / NS_PER_S)
