"""A replica on paper: a process that speaks real frames over a link in memory and meters with the real meter.

It does what `runtime.replica` does: a blocking loop that takes all that has come, joins what fits into a batch, runs
it, and answers. While it runs, it hears nothing. What a run takes stands in the requests.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

from autoscaler.drivers.processes import ExitStatus
from serve.core.clock import NS_PER_S, NS_PER_US, Clock
from serve.core.events import (
    Drained,
    Event,
    Failed,
    LoadOrder,
    Phase,
    PhaseDone,
    Ready,
    Stats,
    TensorSpec,
    encode_event,
)
from serve.core.frames import Frame, Kind, ResponseHead, Usage, pack, pack_response, unpack_request
from serve.core.link import FrameReceiver
from serve.core.meter import BusyMeter
from simulator.habits import Habits, Start
from simulator.paper import PaperLink
from simulator.work import Effect, Work

STATS_INTERVAL_NS = NS_PER_S
_SPECS = (TensorSpec("x", "FP32", (-1, 4)),)
_CANCELLED, _EXPIRED, _DRAINING, _FAILED, _OK = 499, 503, 503, 500, 200
_BODIES = {_OK: b"{}"}
_ERROR = b'{"error":"refused on paper"}'


@dataclass(slots=True, eq=False)
class _Inside:
    stream: int
    request_id: str
    work: Work
    entered_ns: int
    deadline_ns: int
    ticket: int


class SimulatedReplica:
    """Owned by the running loop; implements `paper.FarEnd` and `autoscaler.drivers.replica.Process`.

    `on_death` hears of its end in the instant in which it dies, `out_of_memory` before that if the kernel kills it for
    memory. Everything it does is drawn from its own dice.
    """

    def __init__(
        self,
        pid: int,
        order: LoadOrder,
        habits: Habits,
        clock: Clock,
        chance: random.Random,
        on_death: Callable[[SimulatedReplica], None],
        on_out_of_memory: Callable[[], None],
    ) -> None:
        self.pid = pid
        self.order = order
        self.link: PaperLink
        self.meter = BusyMeter()
        self.is_over = False
        self.ready_ns = 0
        """0 until the model is loaded."""
        self._began_ns = clock.monotonic_ns()
        self.has_drained = False
        """It said all there was to say before it left."""
        self._habits = habits
        self._clock = clock
        self._chance = chance
        self._on_death = on_death
        self._on_out_of_memory = on_out_of_memory
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[ExitStatus] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        """A process does one thing at a time."""
        self._stalled_until_ns = 0
        self._is_hung = self._is_draining = self._is_told_to_end = self._is_killed = False
        self._inbox: list[Frame] = []
        self._waiting: list[_Inside] = []
        self._batch: list[_Inside] = []
        self._memory_bytes = habits.memory_bytes
        self._answered = self._executions = self._told_answered = 0
        self._stats_due_ns = 0

    def connect(self, receiver: FrameReceiver) -> PaperLink:
        """Return the platform's end of the connection to it."""
        self.link = PaperLink(receiver, self, lambda: self._habits.delay_s(self._chance))
        return self.link

    @property
    def inside(self) -> int:
        """Requests that it has taken and not answered."""
        return len(self._waiting) + len(self._batch)

    # What is done to it ----------------------------------------------------------------------------------------------

    def load(self, start: Start) -> None:
        """Begin to load the model."""
        if start is Start.LOAD_HANGS:
            self._is_hung = True
        else:
            self._after(self._habits.load_s(self._chance), lambda: self._loaded(start))

    def kill(self) -> None:
        if not self.is_over and not self._is_killed:
            self._is_killed = True
            self._loop.call_later(self._habits.lag_s(self._chance), self.die, None, signal.SIGKILL)

    def stall(self, duration_s: float) -> None:
        """Stop it for a while, as SIGSTOP or a machine without a free core does."""
        self._stalled_until_ns = self._clock.monotonic_ns() + round(duration_s * NS_PER_S)

    def die(self, code: int | None, number: int | None) -> None:
        """It is gone, in this instant. Those who watch hear of it later, in whatever order."""
        if self.is_over:
            return
        self.is_over = True
        if self._timer is not None:
            self._timer.cancel()
        if not self._habits.leaves_socket_open:
            self.link.hang_up()
        self._on_death(self)
        self._loop.call_later(self._habits.lag_s(self._chance), self._reaped, ExitStatus(code, number))

    # FarEnd

    def frames_came(self, frames: list[Frame]) -> None:
        self._inbox += frames
        if self._timer is None and not self._is_hung and not self.is_over:
            self._turn()

    def closed(self) -> None:
        self._is_told_to_end = not self._habits.is_deaf_to_end
        if self._timer is None and not self._is_hung and not self.is_over:
            self._turn()

    # Loading ---------------------------------------------------------------------------------------------------------

    def _loaded(self, start: Start) -> None:
        if start is Start.LOAD_CRASHES:
            self.die(None, signal.SIGSEGV)
        elif start is Start.OUT_OF_MEMORY:
            self._on_out_of_memory()
            self.die(None, signal.SIGKILL)
        elif start is Start.LOAD_FAILS:
            self._say(Failed(self._clock.monotonic_ns(), "load_error", "the model on paper does not load"))
            self.die(3, None)
        else:
            self._become_ready()

    def _become_ready(self) -> None:
        self.ready_ns = now_ns = self._clock.monotonic_ns()
        self._say(PhaseDone(Phase.MAP, self._began_ns, self._began_ns))
        self._say(PhaseDone(Phase.LOAD, self._began_ns, now_ns))
        memory_bytes = self._memory_bytes
        self._say(Ready(now_ns, "paper", "1", _SPECS, _SPECS, self._habits.is_batchable, memory_bytes, memory_bytes))
        self._turn()

    # Serving ---------------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Take all that has come; run, wait for more, or leave."""
        now_ns = self._clock.monotonic_ns()
        if now_ns < self._stalled_until_ns:
            self._after(0.0, self._turn)
            return
        if not self.ready_ns:
            if self._is_told_to_end:
                self.die(0, None)
            return
        inbox, self._inbox = self._inbox, []
        for frame in inbox:
            self._take(frame, now_ns)
        if self._waiting:
            self._run()
        elif self._is_draining and not self._habits.is_deaf_to_drain:
            self._after(self._habits.leave_s(self._chance), self._leave)
        elif self._is_told_to_end:
            self.die(0, None)
        else:
            self._report(now_ns)

    def _take(self, frame: Frame, now_ns: int) -> None:
        if frame.kind == Kind.DRAIN:
            self._is_draining = True
        elif frame.kind == Kind.CANCEL:
            for inside in self._waiting:
                if inside.stream == frame.stream:
                    self._waiting.remove(inside)
                    self._answer([(inside, _CANCELLED)], 0, 0)
                    return
        elif frame.kind == Kind.REQUEST:
            head, body = unpack_request(frame.payload)
            work = Work.of(bytes(body))
            deadline_ns = now_ns + head.timeout_us * NS_PER_US
            ticket = self.meter.enter(work.rows, now_ns)
            inside = _Inside(frame.stream, head.request_id, work, now_ns, deadline_ns, ticket)
            if self._is_draining:
                self._answer([(inside, _DRAINING)], 0, 0)
            else:
                self._waiting.append(inside)

    def _run(self) -> None:
        """Run the oldest with all that fit beside it."""
        rows = 0
        while self._waiting:
            rows += self._waiting[0].work.rows
            if self._batch and (not self._habits.is_batchable or rows > self.order.max_batch_rows):
                break
            self._batch.append(self._waiting.pop(0))
        effects = {inside.work.effect for inside in self._batch}
        run_s = max(inside.work.run_us for inside in self._batch) / 1e6
        if Effect.POISON in effects:
            self._after(run_s / 2, lambda: self.die(None, signal.SIGSEGV))
        elif Effect.HANG in effects:
            self._is_hung = True
        else:
            began_ns = self._clock.monotonic_ns()
            self._after(run_s, lambda: self._ran(began_ns))

    def _ran(self, began_ns: int) -> None:
        batch, self._batch = self._batch, []
        self._executions += 1
        answers = []
        for inside in batch:
            status = _FAILED if inside.work.effect is Effect.ERROR else _OK
            answers.append((inside, _EXPIRED if inside.deadline_ns < began_ns else status))
        rows = sum(inside.work.rows for inside in batch)
        self._answer(answers, self._clock.monotonic_ns() - began_ns, rows)
        self._turn()

    def _answer(self, answers: list[tuple[_Inside, int]], infer_ns: int, batch_rows: int) -> None:
        """Answer these in one send."""
        now_ns = self._clock.monotonic_ns()
        parts = []
        for inside, status in answers:
            self._answered += 1
            usage = Usage(
                entered_ns=inside.entered_ns,
                left_ns=now_ns,
                infer_ns=infer_ns,
                share_ns=self.meter.leave(inside.ticket, inside.work.rows, now_ns),
                total_busy_ns=self.meter.total_busy_ns,
                total_share_ns=self.meter.total_share_ns,
                rows=inside.work.rows,
                batch_rows=batch_rows,
                answered=self._answered,
                executions=self._executions,
            )
            parts.append(pack_response(inside.stream, ResponseHead(status, 0, -1), _BODIES.get(status, _ERROR), usage))
        self.link.say(b"".join(parts))

    def _report(self, now_ns: int) -> None:
        if self._answered == self._told_answered or now_ns < self._stats_due_ns:
            return
        self._told_answered = self._answered
        self._stats_due_ns = now_ns + STATS_INTERVAL_NS
        self._memory_bytes += self._habits.growth_bytes
        stats = Stats(now_ns, self.meter.total_busy_ns, self._answered, self._memory_bytes, self._memory_bytes)
        for _ in range(1 + self._habits.repeats_stats):
            self._say(stats)

    def _leave(self) -> None:
        self.has_drained = True
        self._say(Drained(self._clock.monotonic_ns(), self.meter.total_busy_ns))
        self.die(0, None)

    # Within ----------------------------------------------------------------------------------------------------------

    def _say(self, event: Event) -> None:
        self.link.say(pack(Kind.EVENT, payload=encode_event(event)))

    def _after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do the next thing after as long, and not while it is stalled."""
        now_ns = self._clock.monotonic_ns()
        at_ns = max(now_ns + round(delay_s * NS_PER_S), self._stalled_until_ns)
        self._timer = self._loop.call_later((at_ns - now_ns) / NS_PER_S, self._wake, action)

    def _wake(self, action: Callable[[], None]) -> None:
        self._timer = None
        if self._clock.monotonic_ns() < self._stalled_until_ns:
            self._after(0.0, action)
        else:
            action()

    def _reaped(self, status: ExitStatus) -> None:
        if not self.exited.done():
            self.exited.set_result(status)
