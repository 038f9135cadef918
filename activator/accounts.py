"""Accounts: who pays for what a replica does, written to the journal before any answer leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from activator.account import Account
from activator.calls import Call, Reply
from activator.connection import ReplicaConnection
from activator.writer import AnswerWriter
from billing import records
from billing.attribute import Share
from billing.journal import Journal
from billing.prices import COST_DENOMINATOR, PriceBook, Prices, round_half_even
from serve.core import machine
from serve.core.clock import NS_PER_US, Clock
from serve.core.frames import ResponseHead, Usage
from serve.core.ids import ReplicaId
from serve.core.metrics import Metrics
from serve.core.scaling import Exited, ReplicaInfo

STATUS_CLIENT_LEFT = 499


_NO_USAGE = Usage(0, 0, 0, 0, 0, 0, rows=1, batch_rows=0, answered=0, executions=0)
"""Of a call whose replica died before it told."""


class Accounts:
    """Keeps the books of all live replicas of one activator. Owned by the event loop."""

    def __init__(
        self, journal: Journal, prices: PriceBook, clock: Clock, metrics: Metrics, checkpoint_interval_s: float
    ) -> None:
        self.metrics = metrics
        self.writer = AnswerWriter(journal, metrics, clock)
        self._journal = journal
        self._book = prices
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._checkpoint_interval_s = checkpoint_interval_s
        self._checkpoint_timer: asyncio.TimerHandle | None = None
        self._machine_bytes = machine.memory_bytes()
        self._accounts: dict[ReplicaId, Account] = {}
        self._prices: tuple[Prices, str] = (prices.entries[0], prices.entries[0].version)
        self._prices_from_ns = self._prices_until_ns = 0
        for entry in prices.entries:
            journal.append(records.price(entry, journal.origin, mono_ns=clock.monotonic_ns(), wall_ns=clock.wall_ns()))
        self.writer.flush()

    # Lives ----------------------------------------------------------------------------------------------------------

    def assigned(
        self,
        info: ReplicaInfo,
        labels: dict[str, str],
        oldest_inside_ns: Callable[[], int | None],
        *,
        is_memory_known: bool,
    ) -> None:
        """A life begins. `oldest_inside_ns` tells when the oldest unanswered call was sent inside.

        Where the memory of a revision is not known yet, `info` has an estimate: what is `measured` is charged instead.
        """
        life = records.Life(
            replica=info.id,
            deployment=info.key.name,
            revision=info.key.number,
            cores=info.cores,
            memory_mib=records.mebibytes(info.memory_bytes),
            assigned_mono_ns=info.assigned_ns,
            assigned_wall_ns=info.assigned_wall_ns,
            labels=dict(labels),
            pid=info.pid,
        )
        account = Account(
            life,
            self._journal.origin,
            oldest_inside_ns,
            is_memory_known=is_memory_known,
            most_bytes=self._machine_bytes,
        )
        self._accounts[info.id] = account
        self._checkpoint(account, is_looked_at=False)
        self.writer.flush()
        if self._checkpoint_timer is None:
            self._checkpoint_timer = self._loop.call_later(self._checkpoint_interval_s, self._checkpoint_all)

    def ready(self, replica_id: ReplicaId, at_ns: int) -> None:
        account = self._accounts[replica_id]
        account.meter.ready(at_ns, self._clock.monotonic_ns())
        self._segment(account, "cold", at_ns)

    def measured(self, replica_id: ReplicaId, memory_bytes: int) -> None:
        """The replica reported the most memory it has held so far."""
        account = self._accounts.get(replica_id)
        if account is not None:
            account.measured(memory_bytes)

    def retired(self, replica_id: ReplicaId) -> None:
        account = self._accounts.get(replica_id)
        if account is not None:
            now_ns = self._clock.monotonic_ns()
            account.meter.drain(now_ns)
            self._segment(account, "run", now_ns, account.oldest_inside_ns())

    def gone(self, exited: Exited, inside_since_ns: int | None) -> None:
        """Close the life. `inside_since_ns`: when the oldest call that never answered was sent inside."""
        account = self._accounts.pop(exited.id, None)
        if account is None:
            return
        account.meter.exited(exited.at_ns, inside_since_ns)
        self._segment(account, "drain", exited.at_ns, exited=exited)

    def busy_reported(self, replica_id: ReplicaId, at_ns: int, total_busy_ns: int) -> None:
        account = self._accounts.get(replica_id)
        if account is not None:
            account.meter.busy_reported(at_ns, total_busy_ns, self._clock.monotonic_ns())

    # Requests -------------------------------------------------------------------------------------------------------

    def answered(
        self, replica: ReplicaConnection, call: Call, head: ResponseHead, usage: Usage, body: memoryview, now_ns: int
    ) -> Reply:
        """Put one answer on the books; `writer.release` writes it and lets it go."""
        account = self._accounts[replica.id]
        share = account.meter.answered(usage, now_ns)
        wall_ns = self._clock.wall_ns()
        prices, version = self._prices_at(wall_ns)
        status = status_of_left(call)[0] if call.is_left else head.status
        charged, reason = _charged(call, status)
        cost_nano = 0
        if charged:
            cost_nano = round_half_even(
                account.cost_per_us(prices) * (share.busy_us + share.cold_us) + prices.request_nano * COST_DENOMINATOR
            )
        record = _request_line(
            account, call, usage, share, status, charged, reason, len(body), version, now_ns, wall_ns
        )
        self._journal.append(record)
        return Reply(head, body, usage, replica.id, cost_nano, self._book.currency)

    def lost(self, replica: ReplicaConnection, call: Call, status: int, reason: str) -> None:
        """A call died with its replica and is not tried again: recorded, never charged."""
        account = self._accounts.get(replica.id)
        if account is None:
            return
        now_ns, wall_ns = self._clock.monotonic_ns(), self._clock.wall_ns()
        version = self._prices_at(wall_ns)[1]
        self._journal.append(
            _request_line(account, call, _NO_USAGE, Share(0, 0), status, False, reason, 0, version, now_ns, wall_ns)
        )
        self.writer.flush()

    def checkpoint(self) -> None:
        """Write the state of all open lives."""
        if not self.writer.is_blocked:  # a later checkpoint says all that one in the buffer would: it must not grow
            for account in self._accounts.values():
                self._checkpoint(account)
            self.writer.flush()

    def close(self) -> None:
        """Write the state of lives that are still open, and sync. Raise JournalError."""
        if self._checkpoint_timer is not None:
            self._checkpoint_timer.cancel()
        for account in self._accounts.values():
            self._checkpoint(account)
        self.writer.close()

    # Writing --------------------------------------------------------------------------------------------------------

    def _prices_at(self, wall_ns: int) -> tuple[Prices, str]:
        """Return the prices in force and their version."""
        if not self._prices_from_ns <= wall_ns < self._prices_until_ns:
            prices = self._book.at(wall_ns)
            changes_ns = [0, *self._book.changes_ns(), 1 << 63]
            self._prices = (prices, prices.version)
            self._prices_from_ns = max(change for change in changes_ns if change <= wall_ns)
            self._prices_until_ns = min(change for change in changes_ns if change > wall_ns)
        return self._prices

    def _checkpoint_all(self) -> None:
        self._checkpoint_timer = None
        if not self._accounts:
            return
        self.checkpoint()
        self._checkpoint_timer = self._loop.call_later(self._checkpoint_interval_s, self._checkpoint_all)

    def _checkpoint(self, account: Account, *, is_looked_at: bool = True) -> None:
        self._journal.append(
            account.checkpoint(self._clock.monotonic_ns(), self._clock.wall_ns(), is_looked_at=is_looked_at)
        )

    def _segment(
        self, account: Account, part: str, at_ns: int, inside_ns: int | None = None, exited: Exited | None = None
    ) -> None:
        self._journal.append(account.segment(part, at_ns, self._clock.wall_ns(), inside_ns, exited))
        self.writer.flush()


def status_of_left(call: Call) -> tuple[int, str]:
    """Return what the caller of a call inside was told before the replica was done with it, and why."""
    if call.refusal is not None:
        return call.refusal.status, call.refusal.code
    return STATUS_CLIENT_LEFT, "client_left"


def _request_line(
    account: Account,
    call: Call,
    usage: Usage,
    share: Share,
    status: int,
    charged: bool,
    reason: str | None,
    bytes_out: int,
    price: str,
    mono_ns: int,
    wall_ns: int,
) -> bytes:
    """Return the record of a call that was inside this replica, answered or not."""
    return account.lines.line(
        id=call.request_id,
        mono_ns=mono_ns,
        wall_ns=wall_ns,
        status=status,
        charged=charged,
        reason=reason,
        rows=usage.rows,
        batch_rows=usage.batch_rows,
        queue_us=(call.dispatched_ns - call.received_ns) // NS_PER_US,
        inside_us=(mono_ns - call.dispatched_ns) // NS_PER_US,
        cold_us=share.cold_us,
        busy_us=share.busy_us,
        infer_us=min(usage.infer_ns, mono_ns - call.dispatched_ns) // NS_PER_US,
        bytes_in=len(call.body),
        bytes_out=bytes_out,
        cold=call.is_cold,
        price=price,
        client_id=call.client_id or None,
        trace_id=call.trace_id or None,
    )


def _charged(call: Call, status: int) -> tuple[bool, str | None]:
    if call.is_probe:
        return False, "probe"
    if call.refusal is not None:
        return False, call.refusal.code
    if status >= 500:
        return False, "error"
    return True, None
