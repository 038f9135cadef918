"""Virtual time: an event loop that never waits, and the clock that it moves.

Everything asyncio does works on it but sockets, signals and threads: timers, tasks, futures, `asyncio.timeout`. Where a
loop would wait for the next timer, this one jumps there. So a day takes as long as what happens in it, nothing depends
on the speed of the machine, and the same program takes the same steps every time.

What would run in a thread (`run_in_executor`, `asyncio.to_thread`) runs on the loop, after as long as `job_s` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from typing import Any

from serve.core.clock import NS_PER_S

_START_NS = 1000 * NS_PER_S
_WALL_NS = 1_700_000_000 * NS_PER_S
_MOST_TURNS = 20_000
"""Without time passing: what is still busy then will be for ever."""

_MOST_CANCELS = 5
"""So often a task may go on after it was told to end."""


class Stuck(Exception):
    """Somebody waits, and nothing is scheduled that could ever end it."""


class Spinning(Exception):
    """The loop turns and turns, and time does not pass."""


class SimulatedClock:
    """Both clocks of a machine on paper; monotonic time is moved by the loop alone. A `serve.core.clock.Clock`."""

    def __init__(self, monotonic_ns: int = _START_NS, wall_ns: int = _WALL_NS) -> None:
        self._now_ns = monotonic_ns
        self._wall_ahead_ns = wall_ns - monotonic_ns

    def monotonic_ns(self) -> int:
        return self._now_ns

    def wall_ns(self) -> int:
        return self._now_ns + self._wall_ahead_ns

    def advance(self, duration_ns: int) -> None:
        self._now_ns += duration_ns

    def step_wall(self, step_ns: int) -> None:
        """Move only the wall clock, as an operator or NTP does."""
        self._wall_ahead_ns += step_ns


class VirtualLoop(asyncio.BaseEventLoop):
    """A loop on a simulated clock. `on_turn(is_settled)` is called between two turns; what it raises ends the run.

    Settled: nothing is left to do at this instant, so time is about to pass. What a callback raises ends the run, too.
    """

    def __init__(self, clock: SimulatedClock, on_turn: Callable[[bool], None] | None = None) -> None:
        super().__init__()
        self.clock = clock
        self.turns = 0
        self.job_s: Callable[[], float] = lambda: 0.0
        """How long the next job of a thread takes."""
        self.before_job: Callable[[Callable[..., Any]], None] = lambda _job: None
        """What it raises, the job ends with."""
        self._on_turn = on_turn
        self._turns_at_instant = 0
        self._is_dead = False
        self._jobs: set[asyncio.Future[Any]] = set()
        self._failure: BaseException | None = None
        """What a callback raised: nobody else hears of it."""
        self.set_exception_handler(self._note_failure)
        self._clock_resolution = 1e-9
        self._selector = self  # the base class asks it for events, and we have none but the passing of time

    def time(self) -> float:
        return self.clock.monotonic_ns() / NS_PER_S

    def _note_failure(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:  # noqa: ARG002
        if self._failure is None:
            self._failure = context.get("exception") or RuntimeError(context["message"])

    def select(self, timeout: float | None) -> list[Any]:
        """Let `timeout` pass at once. None: nothing is scheduled at all. Raise Stuck, Spinning."""
        self.turns += 1
        if self._failure is not None and not self._is_dead:
            raise self._failure
        self._turns_at_instant = 0 if timeout else self._turns_at_instant + 1
        if self._turns_at_instant > _MOST_TURNS:
            raise Spinning(f"{_MOST_TURNS} turns of the loop at one instant")
        if self._on_turn is not None:
            self._on_turn(timeout != 0)
        if timeout is None:
            raise Stuck("somebody waits for what nothing will bring")
        if timeout > 0:
            self.clock.advance(math.ceil(timeout * NS_PER_S))
        return []

    def run_in_executor(  # type: ignore[override]
        self,
        executor: Any,  # noqa: ARG002 - there are no threads
        func: Callable[..., Any],
        *args: Any,
    ) -> asyncio.Future[Any]:
        """Run `func` as a thread would, but here."""
        future: asyncio.Future[Any] = self.create_future()
        self._jobs.add(future)
        self.call_later(self.job_s(), self._run_job, future, func, args)
        return future

    def timers(self) -> list[asyncio.TimerHandle]:
        """Return what is still to come."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return [handle for handle in scheduled if not handle.cancelled()]

    def bury(self) -> None:
        """End what a process left behind that died: no timer fires any more, no job ends, tasks are cancelled.

        Whoever calls this sees to it that nothing has an effect any more.
        """
        self._is_dead = True
        self._on_turn = None
        for timer in self.timers():
            timer.cancel()
        for job in self._jobs:
            job.cancel()
        for _ in range(_MOST_CANCELS):
            tasks = asyncio.all_tasks(self)
            for task in tasks:
                task.cancel()
            for task in tasks:
                self._turns_at_instant = 0
                # What killed the process may be told to more than one of them.
                with contextlib.suppress(Exception, asyncio.CancelledError, SystemExit):
                    self.run_until_complete(task)
        self.close()

    def _run_job(self, future: asyncio.Future[Any], func: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._jobs.discard(future)
        if future.cancelled():
            return
        try:
            self.before_job(func)
            result = func(*args)
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody wakes a loop that never sleeps."""
