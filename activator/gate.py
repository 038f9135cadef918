"""The gate of one revision: admits, holds, chooses a replica, forwards, replays."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from activator import refusals
from activator.accounts import Accounts, status_of_left
from activator.calls import Call, Reply
from activator.connection import Answered, ReplicaConnection
from activator.deadlines import Deadlines
from activator.load import Load
from activator.pick import pick
from activator.room import Room
from serve.core.clock import NS_PER_S, Clock
from serve.core.errors import ServeError
from serve.core.events import Phase
from serve.core.ids import ReplicaId, RevisionKey
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

    def __init__(
        self,
        revision: Revision,
        clock: Clock,
        accounts: Accounts,
        listener: DemandListener,
        expected_start_s: Callable[[RevisionKey], float | None],
    ) -> None:
        self.revision = revision
        self.key = revision.key
        self.connections: dict[ReplicaId, ReplicaConnection] = {}
        """Every live replica of this revision, open or not."""
        self.room = Room(0)
        """For the bodies of this revision's calls, waiting or inside."""
        self.is_removed = False
        self._clock = clock
        self._accounts = accounts
        self._listener = listener
        self._expected_start_s = expected_start_s
        self._loop = asyncio.get_running_loop()
        self._open: list[ReplicaConnection] = []
        self._waiting: deque[Call] = deque()
        self._load = Load()
        self._deadlines = Deadlines(clock, self._check_deadlines)
        self._apply_settings()

    # What others ask ------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """Calls inside replicas whose callers still wait."""
        return self._load.concurrency - len(self._waiting)

    def demand(self, now_ns: int) -> Demand:
        """Return what the autoscaler samples; resets the peak."""
        return self._load.demand(len(self._waiting), now_ns)

    def retry_after_s(self) -> float:
        """Return how long this revision's starts take: what `Retry-After` says. 1 s before the first."""
        expected_s = self._expected_start_s(self.key)
        return 1.0 if expected_s is None else expected_s

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
            raise refusals.queue_full(self.key, len(self._waiting), self.retry_after_s())

    async def reserve(self, size: int, deadline_ns: int) -> None:
        """Wait until `size` bytes of body may be held. Raise QueueTimeout at the deadline."""
        try:
            await self.room.reserve(size, self.left_s(deadline_ns))
        except TimeoutError:
            raise refusals.queue_timeout(self.key, self.retry_after_s()) from None

    def left_s(self, deadline_ns: int) -> float:
        """Return how long it is until `deadline_ns`."""
        return max(0.0, (deadline_ns - self._clock.monotonic_ns()) / NS_PER_S)

    def upload_timeout(self) -> ServeError:
        """Return the error for a body that was not there at its deadline."""
        return refusals.upload_timeout(self.timeout_ns)

    def submit(self, call: Call) -> None:
        """Accept a call whose body is reserved: dispatch it now, or hold it. Raise QueueFull or QueueTimeout."""
        if self.is_removed:
            raise refusals.removed(self.key)
        now_ns = self._clock.monotonic_ns()
        load = self._load
        was_quiet = not load.concurrency and now_ns - load.last_active_ns > _QUIET_NS
        call.on_leave = self._left
        if not self._waiting and (replica := pick(self._open, self.concurrency, alone=False)) is not None:
            load.came(now_ns)
            replica.dispatch(call, now_ns)
            self._deadlines.arm(self._inside_deadline_ns(call))
            if was_quiet:
                self._listener.poke(self.key)
            return
        call.is_cold = not self._open
        if call.wait_until_ns <= now_ns or len(self._waiting) >= self._queue_limit:
            load.turned_away(now_ns)
            self._listener.poke(self.key)
            self.check_queue()
            raise refusals.queue_timeout(self.key, self.retry_after_s())
        load.came(now_ns)
        self._waiting.append(call)
        self._deadlines.arm(call.wait_until_ns)
        if (len(self._waiting) - 1) % self.concurrency == 0:
            self._listener.poke(self.key)

    def remove(self) -> None:
        """The revision is gone: tell what waits, and what is still being uploaded as soon as it is there."""
        self.is_removed = True
        self.fail_pending(refusals.removed(self.key))

    def fail_pending(self, error: ServeError) -> None:
        """No replica can come: answer everything that waits."""
        waiting, self._waiting = self._waiting, deque()
        now_ns = self._clock.monotonic_ns()
        for call in waiting:
            self._ended(call, now_ns)
        for call in waiting:
            call.refuse(error)

    def fail_all(self, error: ServeError) -> None:
        """Answer what waits and what is inside: there is no more time for either."""
        self.fail_pending(error)
        now_ns = self._clock.monotonic_ns()
        for replica in self.connections.values():
            for call in [call for call in replica.outstanding.values() if not call.is_left]:
                self._refuse_inside(replica, call, error, now_ns)

    # Replicas -------------------------------------------------------------------------------------------------------

    def replica_ready(self, replica: ReplicaConnection) -> None:
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
        for call in reversed(replica.drain_outstanding()):
            if call.is_left:
                self._accounts.lost(replica, call, *status_of_left(call))
                continue
            call.tries += 1
            if call.tries < MAX_TRIES and self.revision.spec.engine in REPLAYABLE_ENGINES:
                self._accounts.metrics.replays.inc()
                self._waiting.appendleft(call)
                continue
            self._ended(call, now_ns)
            error = refusals.replica_lost(self.key, exited.message)
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
                self._ended(call, now_ns)
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
            replica.dispatch(call, now_ns)
            self._deadlines.arm(self._inside_deadline_ns(call))

    def _left(self, call: Call) -> None:
        """The caller is gone: forget the call, wherever it is."""
        now_ns = self._clock.monotonic_ns()
        call.is_left = True
        call.finish(None)
        for replica in self.connections.values():
            if replica.abandon(call):
                self._ended(call, now_ns)
                self._dispatch_waiting(now_ns)
                return
        try:
            self._waiting.remove(call)
        except ValueError:
            return
        self._ended(call, now_ns)
        self._dispatch_waiting(now_ns)  # it may have waited for a replica of its own, and others behind it

    def _ended(self, call: Call, now_ns: int) -> None:
        """The call leaves the gate: its bytes are free."""
        self.room.release(len(call.body))
        self._load.ended(now_ns)

    def _close(self, replica: ReplicaConnection) -> None:
        if replica.is_open:
            replica.is_open = False
            self._open.remove(replica)

    def _cold_phases(self, replica: ReplicaConnection, call: Call, now_ns: int) -> dict[str, int]:
        queue_ns = max(0, replica.info.assigned_ns - call.received_ns)
        phases = {Phase.QUEUE.value: queue_ns, **replica.cold_phases}
        phases[Phase.INFER.value] = now_ns - call.dispatched_ns
        return phases

    # Deadlines ------------------------------------------------------------------------------------------------------

    def _check_deadlines(self, now_ns: int) -> int | None:
        """Refuse what is overdue. Return when to look again."""
        expired = [call for call in self._waiting if call.wait_until_ns <= now_ns]
        if expired:
            self._waiting = deque(call for call in self._waiting if call.wait_until_ns > now_ns)
            for call in expired:
                self._ended(call, now_ns)
                call.refuse(refusals.queue_timeout(self.key, self.retry_after_s()))
        for replica in list(self.connections.values()):
            self._check_inside(replica, now_ns)
        self._dispatch_waiting(now_ns)
        upcoming = [call.wait_until_ns for call in self._waiting]
        for replica in self.connections.values():
            upcoming += (self._inside_deadline_ns(call) for call in replica.outstanding.values() if not call.is_left)
            if replica.is_open and (oldest_ns := replica.oldest_inside_ns()) is not None:
                upcoming.append(oldest_ns + self._execution_timeout_ns)
        return min(upcoming, default=None)

    def _inside_deadline_ns(self, call: Call) -> int:
        return min(call.deadline_ns, call.dispatched_ns + self._execution_timeout_ns)

    def _check_inside(self, replica: ReplicaConnection, now_ns: int) -> None:
        for call in [call for call in replica.outstanding.values() if not call.is_left]:
            if self._inside_deadline_ns(call) > now_ns:
                continue
            error = refusals.execution_timeout(self.key, now_ns - call.dispatched_ns)
            self._refuse_inside(replica, call, error, now_ns)
        # Whether its caller still waits or not: a replica that does not come back from a request serves nobody.
        oldest_ns = replica.oldest_inside_ns()
        if replica.is_open and oldest_ns is not None and oldest_ns + self._execution_timeout_ns <= now_ns:
            self._close(replica)
            limit_s = self._execution_timeout_ns / NS_PER_S
            self._listener.replica_overdue(replica.id, f"a request took longer than execution_timeout ({limit_s:g} s)")

    def _refuse_inside(self, replica: ReplicaConnection, call: Call, error: ServeError, now_ns: int) -> None:
        replica.abandon(call)
        self._ended(call, now_ns)
        call.refuse(error)
