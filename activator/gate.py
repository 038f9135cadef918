"""The gate of one revision: admits, holds, chooses a replica, forwards, replays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NoReturn

from activator import refusals
from activator.accounts import Accounts, status_of_left
from activator.calls import Call, Reply
from activator.connection import Answered, ReplicaConnection
from activator.deadlines import Deadlines
from activator.line import Line
from activator.load import Load
from activator.pick import pick, pick_alone
from activator.replay import is_strike, may_try_again
from activator.room import Room
from serve.core.clock import NS_PER_S, NS_PER_US, Clock
from serve.core.errors import ServeError
from serve.core.ids import ReplicaId, RevisionKey
from serve.core.revision import Revision
from serve.core.scaling import Demand, DemandListener, Exited

_QUIET_NS = NS_PER_S
"""An arrival after this long without any call is news to the autoscaler."""
_PAUSE_NS = 20 * NS_PER_US
"""Pause before the next look at deadlines, for each call looked at: however long the line, it costs little."""


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
        self._open: list[ReplicaConnection] = []
        self._line = Line()
        self._spared: ReplicaConnection | None = None
        """Gets nothing, so that it becomes empty for a suspect."""
        self._load = Load()
        self._deadlines = Deadlines(clock, self._check_deadlines)
        self._apply_settings()

    # What others ask ------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        return len(self._line)

    @property
    def in_flight(self) -> int:
        """Calls inside replicas whose callers still wait."""
        return self._load.concurrency - len(self._line)

    def demand(self, now_ns: int) -> Demand:
        """Return what the autoscaler samples; resets the peak."""
        return self._load.demand(len(self._line), now_ns)

    def retry_after_s(self) -> float:
        """Return how long a call waits now, which `Retry-After` says: as the first in line has, or as a start takes."""
        if self._open:
            first = next(iter(self._line), None)
            return 1.0 if first is None else (self._clock.monotonic_ns() - first.received_ns) / NS_PER_S
        return self._expected_start_s(self.key) or 1.0

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
        """Raise QueueFull if a further call could only wait in a full queue: demand that is noted, too."""
        if len(self._line) >= self._queue_limit and not pick(self._open, self.concurrency, self._spared):
            self._turn_away(refusals.queue_full(self.key, len(self._line), self.retry_after_s()))

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
        if not self._line.fresh and (replica := pick(self._open, self.concurrency, self._spared)) is not None:
            load.came(now_ns)
            self._send(replica, call, now_ns)
            if was_quiet:
                self._listener.poke(self.key)
            return
        call.is_cold = not self._open
        self.check_queue()
        if call.wait_until_ns <= now_ns:
            self._turn_away(self._queue_timeout())
        load.came(now_ns)
        self._line.join(call)
        self._deadlines.arm(call.wait_until_ns)
        if (len(self._line) - 1) % self.concurrency == 0:
            self._listener.poke(self.key)

    def _turn_away(self, error: ServeError) -> NoReturn:
        """Raise `error` for a call that cannot be accepted; it may be what wakes the model."""
        self._load.turned_away(self._clock.monotonic_ns())
        self._listener.poke(self.key)
        raise error

    def remove(self) -> None:
        """The revision is gone: tell what waits, and what is still being uploaded as soon as it is there."""
        self.is_removed = True
        self.fail_pending(refusals.removed(self.key))

    def close(self) -> None:
        """Nothing is here any more, and nothing will be."""
        self._deadlines.close()

    def fail_pending(self, error: ServeError) -> None:
        """No replica can come: answer everything that waits."""
        self._spared = None
        self._refuse(self._line.take_all(), error)

    def fail_all(self, error: ServeError) -> None:
        """Answer what waits and what is inside: there is no more time for either."""
        self.fail_pending(error)
        for replica in self.connections.values():
            inside = [call for call in replica.outstanding.values() if not call.is_left]
            for call in inside:
                replica.abandon(call)
            self._refuse(inside, error)

    # Replicas -------------------------------------------------------------------------------------------------------

    def replica_ready(self, replica: ReplicaConnection) -> None:
        replica.is_open = True
        self._open.append(replica)
        self._dispatch_waiting(self._clock.monotonic_ns())

    def replica_retired(self, replica: ReplicaConnection) -> None:
        self.shut(replica)
        if not replica.outstanding:
            asyncio.get_running_loop().call_soon(self._listener.replica_empty, replica.id)

    def replica_gone(self, replica: ReplicaConnection, exited: Exited) -> None:
        """Replay what was inside, each alone; answer with the reason what may not be replayed."""
        self.shut(replica)
        self.connections.pop(replica.id, None)
        now_ns = self._clock.monotonic_ns()
        again, lost = list[Call](), list[Call]()
        inside, never_sent = replica.drain_outstanding()
        for call in inside:
            if call.is_left:
                self._accounts.lost(replica, call, *status_of_left(call))
                continue
            call.tries += 1
            call.strikes += is_strike(exited)
            is_again = not self.is_removed and may_try_again(self.revision.spec.engine, call.tries, call.strikes)
            (again if is_again else lost).append(call)
        self._accounts.metrics.replays.inc(len(again))
        self._line.put_back(again, never_sent)
        error = refusals.replica_lost(self.key, exited.message)
        for call in lost:
            self._accounts.lost(replica, call, error.status, error.code)
        self._refuse(lost, error)
        self._dispatch_waiting(now_ns)
        if self._line:
            self._listener.poke(self.key)

    def shut(self, replica: ReplicaConnection) -> None:
        """Send it nothing new."""
        if replica.is_open:
            replica.is_open = False
            self._open.remove(replica)

    def connection_lost(self, replica: ReplicaConnection) -> None:
        self.shut(replica)
        self._listener.replica_link_lost(replica.id)

    def answers_received(self, replica: ReplicaConnection, answers: list[Answered]) -> None:
        """Free the slots and fill them first, then account, then let the answers go: one journal write for all."""
        now_ns = self._clock.monotonic_ns()
        for call, *_ in answers:
            if not call.is_left:
                self._ended(call, now_ns)
        if self._line.fresh or self._line.suspects:
            self._dispatch_waiting(now_ns)
        written: list[tuple[Call, Reply]] = []
        for call, head, usage, body in answers:
            if call.is_cold:
                call.phases = replica.phases_of(call, now_ns)
            written.append((call, self._accounts.answered(replica, call, head, usage, body, now_ns)))
        self._accounts.writer.release(written)
        if not replica.is_open and not replica.outstanding:
            self._listener.replica_empty(replica.id)

    # Within ---------------------------------------------------------------------------------------------------------

    def _dispatch_waiting(self, now_ns: int) -> None:
        line = self._line
        self._spared = None
        while line.suspects:
            replica, self._spared = pick_alone(self._open, others_wait=bool(line.fresh))
            if replica is None:
                break
            self._send(replica, line.suspects.popitem(last=False)[0], now_ns)
        while line.fresh:
            replica = pick(self._open, self.concurrency, self._spared)
            if replica is None:
                return
            self._send(replica, line.fresh.popitem(last=False)[0], now_ns)

    def _send(self, replica: ReplicaConnection, call: Call, now_ns: int) -> None:
        replica.dispatch(call, now_ns)
        self._deadlines.arm(call.inside_until_ns(self._execution_timeout_ns))

    def _left(self, call: Call) -> None:
        """The caller is gone: forget the call, wherever it is."""
        now_ns = self._clock.monotonic_ns()
        call.is_left = True
        call.finish(None)
        if self._line.leave(call) or any(replica.abandon(call) for replica in self.connections.values()):
            self._ended(call, now_ns)
            self._dispatch_waiting(now_ns)

    def _refuse(self, calls: list[Call], error: ServeError) -> None:
        """Answer calls that are in no line and no replica any more. All end first: an answer may bring a new call."""
        now_ns = self._clock.monotonic_ns()
        for call in calls:
            self._ended(call, now_ns)
        for call in calls:
            call.refuse(error)

    def _ended(self, call: Call, now_ns: int) -> None:
        """The call leaves the gate: its bytes are free."""
        self.room.release(len(call.body))
        self._load.ended(now_ns)

    # Deadlines ------------------------------------------------------------------------------------------------------

    def _check_deadlines(self, now_ns: int) -> int | None:
        """Refuse what is overdue. Return when to look again."""
        looked_at = len(self._line)
        limit_ns = self._execution_timeout_ns
        overdue = self._line.take_overdue(now_ns)
        self._refuse([call for call in overdue if call.tries], refusals.no_second_try(self.key))
        self._refuse([call for call in overdue if not call.tries], self._queue_timeout())
        for replica in list(self.connections.values()):
            looked_at += len(replica.outstanding)
            for call in replica.overdue(now_ns, limit_ns):
                replica.abandon(call)
                self._refuse([call], refusals.execution_timeout(self.key, now_ns - call.dispatched_ns))
            if replica.is_stuck(now_ns, limit_ns):
                self._give_up(replica)
        self._dispatch_waiting(now_ns)
        upcoming = [call.wait_until_ns for call in self._line]
        upcoming += [at_ns for replica in self.connections.values() for at_ns in replica.deadlines_ns(limit_ns)]
        return max(min(upcoming), now_ns + looked_at * _PAUSE_NS) if upcoming else None

    def _queue_timeout(self) -> ServeError:
        return refusals.queue_timeout(self.key, self.retry_after_s())

    def _give_up(self, replica: ReplicaConnection) -> None:
        """Whether its caller still waits or not: a replica that does not come back from a request serves nobody."""
        replica.is_overdue = True
        self.shut(replica)
        limit = f"{self._execution_timeout_ns / NS_PER_S:g} s"
        self._listener.replica_overdue(replica.id, f"a request took longer than execution_timeout ({limit})")
