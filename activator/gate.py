"""The gate of one revision: admits, holds, chooses a replica, forwards, replays."""

from __future__ import annotations

import asyncio
from collections import deque

from activator.accounts import Accounts, status_of_left
from activator.calls import Call, Reply
from activator.connection import Answered, ReplicaConnection
from activator.pick import pick
from activator.room import Room
from serve.core.clock import NS_PER_S, Clock
from serve.core.errors import (
    ExecutionTimeout,
    QueueFull,
    QueueTimeout,
    ReplicaLost,
    ServeError,
    UnknownVersion,
    UploadTimeout,
)
from serve.core.events import Phase
from serve.core.ids import ReplicaId
from serve.core.revision import Revision
from serve.core.scaling import Demand, DemandListener, Exited

MAX_TRIES = 2
REPLAYABLE_ENGINES = frozenset({"onnx", "torch", "tensorrt", "scripted"})
"""Running a model twice harms nobody; a user's own code may have had effects."""
_QUIET_NS = NS_PER_S
"""An arrival after this long without any call is news to the autoscaler."""


class Gate:
    """Pending calls and ready replicas of one revision.

    Owned by the event loop: every method returns at once. Calls are pending (here), inside a replica (its connection)
    or done. One timer serves all deadlines of the gate.
    """

    def __init__(self, revision: Revision, clock: Clock, accounts: Accounts, listener: DemandListener) -> None:
        self.revision = revision
        self.key = revision.key
        self.connections: dict[ReplicaId, ReplicaConnection] = {}
        """Every live replica of this revision, open or not."""
        self.room = Room(0)
        """For the bodies of this revision's calls, waiting or inside."""
        self._clock = clock
        self._accounts = accounts
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._open: list[ReplicaConnection] = []
        self._waiting: deque[Call] = deque()
        self._in_flight = 0
        self._peak = 0
        self._arrivals = 0
        self._integral_ns = 0
        self._changed_ns = 0
        self._last_active_ns = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_ns = 0
        self._starts_ns: deque[int] = deque(maxlen=20)
        self._is_removed = False
        self._apply_settings()

    # What others ask ------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def demand(self, now_ns: int) -> Demand:
        """Return what the autoscaler samples; resets the peak."""
        self._count(0, now_ns)
        concurrency = self._in_flight + len(self._waiting)
        peak, self._peak = self._peak, concurrency
        last_active_ns = now_ns if concurrency else self._last_active_ns
        return Demand(self._in_flight, len(self._waiting), self._integral_ns, peak, self._arrivals, last_active_ns)

    def expected_start_s(self) -> float:
        """Return the median of this revision's recent starts: what `Retry-After` says. 1 s before the first."""
        if not self._starts_ns:
            return 1.0
        return sorted(self._starts_ns)[len(self._starts_ns) // 2] / NS_PER_S

    def replace(self, revision: Revision) -> None:
        """Take over what publishing learned of the same revision."""
        self.revision = revision
        self._apply_settings()

    def _apply_settings(self) -> None:
        spec = self.revision.spec
        self.concurrency = self.revision.concurrency
        self._queue_limit = spec.queue
        self.room.limit_bytes = int(spec.queue_bytes)
        self.timeout_ns = int(spec.timeout * NS_PER_S)
        self._execution_timeout_ns = int(spec.execution_timeout * NS_PER_S)

    # Admission ------------------------------------------------------------------------------------------------------

    def check_queue(self) -> None:
        """Raise QueueFull if a further call could only wait in a full queue."""
        if len(self._waiting) >= self._queue_limit and not pick(self._open, self.concurrency, alone=False):
            raise QueueFull(
                f"Exceeds maximum queue size: {len(self._waiting)} requests wait for '{self.key.name}'; retry later or "
                "raise the deployment's queue",
                retry_after_s=self._retry_after_s(),
            )

    async def reserve(self, size: int, deadline_ns: int) -> None:
        """Wait until `size` bytes of body may be held. Raise QueueTimeout at the deadline."""
        try:
            await self.room.reserve(size, self.left_s(deadline_ns))
        except TimeoutError:
            raise self._queue_timeout() from None

    def left_s(self, deadline_ns: int) -> float:
        """Return how long it is until `deadline_ns`."""
        return max(0.0, (deadline_ns - self._clock.monotonic_ns()) / NS_PER_S)

    def upload_timeout(self) -> ServeError:
        """Return the error for a body that was not there at its deadline."""
        return UploadTimeout(
            f"The body was not there after {self.timeout_ns / NS_PER_S:g} s: send it faster, or raise the deployment's "
            "timeout"
        )

    def submit(self, call: Call) -> None:
        """Accept a call whose body is reserved: dispatch it now, or hold it. Raise QueueFull or QueueTimeout."""
        if self._is_removed:
            raise self._unknown()
        now_ns = self._clock.monotonic_ns()
        was_quiet = not self._in_flight and not self._waiting and now_ns - self._last_active_ns > _QUIET_NS
        call.on_leave = self._left
        self._arrivals += 1
        if not self._waiting and (replica := pick(self._open, self.concurrency, alone=False)) is not None:
            self._count(1, now_ns)
            self._in_flight += 1
            replica.dispatch(call, now_ns)
            self._arm(self._inside_deadline_ns(call))
            if was_quiet:
                self._listener.poke(self.key)
            return
        call.is_cold = not self._open
        if call.wait_until_ns <= now_ns or len(self._waiting) >= self._queue_limit:
            self._peak = max(self._peak, self._in_flight + len(self._waiting) + 1)
            self._last_active_ns = now_ns
            self._listener.poke(self.key)
            self.check_queue()
            raise self._queue_timeout()
        self._count(1, now_ns)
        self._waiting.append(call)
        self._arm(call.wait_until_ns)
        if (len(self._waiting) - 1) % self.concurrency == 0:
            self._listener.poke(self.key)

    def remove(self) -> None:
        """The revision is gone: tell what waits, and what is still being uploaded as soon as it is there."""
        self._is_removed = True
        self.fail_pending(self._unknown())

    def fail_pending(self, error: ServeError) -> None:
        """No replica can come: answer everything that waits."""
        waiting, self._waiting = self._waiting, deque()
        self._count(0, self._clock.monotonic_ns())
        for call in waiting:
            self._finish(call)
            call.refuse(error)

    def fail_all(self, error: ServeError) -> None:
        """Answer what waits and what is inside: there is no more time for either."""
        self.fail_pending(error)
        now_ns = self._clock.monotonic_ns()
        for replica in self.connections.values():
            for call in [call for call in replica.outstanding.values() if not call.is_left]:
                self._refuse_inside(replica, call, error, now_ns)

    # Replicas -------------------------------------------------------------------------------------------------------

    def replica_ready(self, replica: ReplicaConnection, started_ns: int) -> None:
        self._starts_ns.append(started_ns)
        replica.is_open = True
        self._open.append(replica)
        self._dispatch_waiting(self._clock.monotonic_ns())

    def replica_retired(self, replica: ReplicaConnection) -> None:
        self._close(replica)
        if not replica.outstanding:
            self._loop.call_soon(self._listener.replica_empty, replica.id)

    def replica_gone(self, replica: ReplicaConnection, exited: Exited) -> None:
        """Replay what was inside, each alone; answer with the reason what may not be replayed."""
        self._close(replica)
        self.connections.pop(replica.id, None)
        now_ns = self._clock.monotonic_ns()
        self._count(0, now_ns)
        for call in reversed(replica.drain_outstanding()):
            if call.is_left:
                self._accounts.lost(replica, call, *status_of_left(call))
                continue
            self._in_flight -= 1
            call.tries += 1
            if call.tries < MAX_TRIES and self.revision.spec.engine in REPLAYABLE_ENGINES:
                self._accounts.metrics.replays.inc()
                self._waiting.appendleft(call)
                continue
            self._finish(call)
            error = ReplicaLost(
                f"The replica died while it ran this request ({exited.message}); see `serve logs {self.key.name}`"
            )
            self._accounts.lost(replica, call, error.status, error.code)
            call.refuse(error)
        if self._waiting:
            self._dispatch_waiting(now_ns)
            if self._waiting:
                self._listener.poke(self.key)

    def connection_lost(self, replica: ReplicaConnection) -> None:
        self._close(replica)
        self._listener.replica_link_lost(replica.id)

    def answers_received(self, replica: ReplicaConnection, answers: list[Answered]) -> None:
        """Free the slots and fill them first, then account, then let the answers go: one journal write for all."""
        now_ns = self._clock.monotonic_ns()
        for call, *_ in answers:
            if not call.is_left:
                self._count(0, now_ns)
                self._in_flight -= 1
                self._finish(call)
        if self._waiting:
            self._dispatch_waiting(now_ns)
        written: list[tuple[Call, Reply]] = []
        for call, head, usage, body in answers:
            if call.is_cold:
                call.phases = self._cold_phases(replica, call, now_ns)
            written.append((call, self._accounts.answered(replica, call, head, usage, body, now_ns)))
        self._accounts.writer.release(written)
        if not replica.is_open and not replica.outstanding:
            self._listener.replica_empty(replica.id)

    # Within ---------------------------------------------------------------------------------------------------------

    def _dispatch_waiting(self, now_ns: int) -> None:
        while self._waiting:
            call = self._waiting[0]
            replica = pick(self._open, self.concurrency, alone=call.tries > 0)
            if replica is None:
                return
            self._waiting.popleft()
            self._in_flight += 1
            replica.dispatch(call, now_ns)
            self._arm(self._inside_deadline_ns(call))

    def _left(self, call: Call) -> None:
        """The caller is gone: forget the call, wherever it is."""
        now_ns = self._clock.monotonic_ns()
        self._count(0, now_ns)
        call.is_left = True
        call.finish(None)
        for replica in self.connections.values():
            if replica.abandon(call):
                self._in_flight -= 1
                self._finish(call)
                self._dispatch_waiting(now_ns)
                return
        try:
            self._waiting.remove(call)
        except ValueError:
            return
        self._finish(call)
        self._dispatch_waiting(now_ns)  # it may have waited for a replica of its own, and others behind it

    def _finish(self, call: Call) -> None:
        """The call leaves the gate: its bytes are free."""
        self.room.release(len(call.body))
        self._last_active_ns = self._changed_ns

    def _close(self, replica: ReplicaConnection) -> None:
        if replica.is_open:
            replica.is_open = False
            self._open.remove(replica)

    def _count(self, arriving: int, now_ns: int) -> None:
        """Advance the integral of concurrency to `now_ns`, before the concurrency changes."""
        concurrency = self._in_flight + len(self._waiting)
        self._integral_ns += concurrency * (now_ns - self._changed_ns)
        self._changed_ns = now_ns
        if concurrency + arriving > self._peak:
            self._peak = concurrency + arriving

    def _cold_phases(self, replica: ReplicaConnection, call: Call, now_ns: int) -> dict[str, int]:
        queue_ns = max(0, replica.info.assigned_ns - call.received_ns)
        phases = {Phase.QUEUE.value: queue_ns, **replica.cold_phases}
        phases[Phase.INFER.value] = now_ns - call.dispatched_ns
        return phases

    # Deadlines ------------------------------------------------------------------------------------------------------

    def _arm(self, at_ns: int) -> None:
        """See to it that the timer fires at `at_ns` or before."""
        if self._timer is not None:
            if self._timer_at_ns <= at_ns:
                return
            self._timer.cancel()
        self._timer_at_ns = at_ns
        delay_s = max(0.001, (at_ns - self._clock.monotonic_ns()) / NS_PER_S)
        self._timer = self._loop.call_later(delay_s, self._check_deadlines)

    def _check_deadlines(self) -> None:
        self._timer = None
        now_ns = self._clock.monotonic_ns()
        expired = [call for call in self._waiting if call.wait_until_ns <= now_ns]
        if expired:
            self._count(0, now_ns)
            self._waiting = deque(call for call in self._waiting if call.wait_until_ns > now_ns)
            for call in expired:
                self._finish(call)
                call.refuse(self._queue_timeout())
        for replica in list(self.connections.values()):
            self._check_inside(replica, now_ns)
        self._dispatch_waiting(now_ns)
        upcoming = [call.wait_until_ns for call in self._waiting]
        for replica in self.connections.values():
            upcoming += (self._inside_deadline_ns(call) for call in replica.outstanding.values() if not call.is_left)
            if replica.is_open and (oldest_ns := replica.oldest_inside_ns()) is not None:
                upcoming.append(oldest_ns + self._execution_timeout_ns)
        if upcoming:
            self._arm(min(upcoming))

    def _inside_deadline_ns(self, call: Call) -> int:
        return min(call.deadline_ns, call.dispatched_ns + self._execution_timeout_ns)

    def _check_inside(self, replica: ReplicaConnection, now_ns: int) -> None:
        for call in [call for call in replica.outstanding.values() if not call.is_left]:
            if self._inside_deadline_ns(call) > now_ns:
                continue
            self._refuse_inside(replica, call, self._execution_timeout(call, now_ns), now_ns)
        # Whether its caller still waits or not: a replica that does not come back from a request serves nobody.
        oldest_ns = replica.oldest_inside_ns()
        if replica.is_open and oldest_ns is not None and oldest_ns + self._execution_timeout_ns <= now_ns:
            self._close(replica)
            limit_s = self._execution_timeout_ns / NS_PER_S
            self._listener.replica_overdue(replica.id, f"a request took longer than execution_timeout ({limit_s:g} s)")

    def _refuse_inside(self, replica: ReplicaConnection, call: Call, error: ServeError, now_ns: int) -> None:
        self._count(0, now_ns)
        replica.abandon(call)
        self._in_flight -= 1
        self._finish(call)
        call.refuse(error)

    def _execution_timeout(self, call: Call, now_ns: int) -> ServeError:
        inside_s = (now_ns - call.dispatched_ns) / NS_PER_S
        return ExecutionTimeout(
            f"'{self.key.name}' had not answered after {inside_s:.1f} s inside a replica; raise execution_timeout or "
            "timeout, or send less"
        )

    def _queue_timeout(self) -> ServeError:
        return QueueTimeout(
            f"Request timeout expired while it waited for a replica of '{self.key.name}'; retry later",
            retry_after_s=self._retry_after_s(),
        )

    def _unknown(self) -> ServeError:
        return UnknownVersion(f"'{self.key.name}' version {self.key.number} was removed")

    def _retry_after_s(self) -> float:
        return self.expected_start_s()
