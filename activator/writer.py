"""Answers leave when their records are on disk: one write for all of a turn, and none while the disk refuses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from activator.calls import Call, Reply
from billing.journal import Journal, JournalError
from serve.core.clock import Clock
from serve.core.errors import ServeError, StorageFull
from serve.core.metrics import Metrics

log = logging.getLogger(__name__)

_RETRY_S = 1.0

Answers = list[tuple[Call, Reply]]


class AnswerWriter:
    """Writes the journal and lets answers go. Owned by the event loop.

    While the disk refuses, nothing is lost: records stay buffered, finished answers are held back until their callers'
    deadlines, new requests are refused, and a retry every second lets everything go on by itself. Implements
    `billing.sync.SyncListener`.
    """

    def __init__(self, journal: Journal, metrics: Metrics, clock: Clock) -> None:
        self._journal = journal
        self._metrics = metrics
        self._clock = clock
        self._held: Answers = []
        """Their records are not written."""
        self._unsynced: Answers = []
        self._syncing: Answers = []
        self._timer: asyncio.TimerHandle | None = None
        self._on_written: list[Callable[[], None]] = []
        self._is_refused = self._is_sync_refused = False
        self.waits_for_sync = False
        """Answers leave only when their records are synced, too."""
        self.is_blocked = False
        """The disk refuses records."""

    def on_written(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever records were written: the ledger has something to read."""
        self._on_written.append(callback)

    def check(self) -> None:
        """Raise StorageFull while the disk refuses records: what cannot be billed is not taken in."""
        if self.is_blocked:
            raise StorageFull(
                "The billing journal cannot be written, so no request is taken in: free space on the disk of the "
                "platform's home",
                retry_after_s=_RETRY_S,
            )

    def release(self, answered: Answers) -> None:
        """Write the records appended so far with one system call, then let these answers leave."""
        self._held += answered
        self._metrics.journal_records.inc(len(answered))
        self.flush()

    def flush(self) -> None:
        """Write what was appended; where the disk refuses, try again in a second."""
        try:
            self._journal.flush()
        except JournalError as error:
            self._is_refused = True
            self._blocked(error)
            # The disk may have taken some before it was full: they are on the books, so their callers get them.
            first = (n for n, (call, _) in enumerate(self._held) if self._journal.is_buffered(call.request_id))
            count = next(first, len(self._held))
            written, self._held = self._held[:count], self._held[count:]
            self._written(written)
            return
        if self._is_refused:
            self._is_refused = False
            self._unblocked()
        written, self._held = self._held, []
        self._written(written)
        for callback in self._on_written:
            callback()

    def refuse_held(self, error: ServeError, until_ns: int | None = None) -> None:
        """Tell the callers of answers that are held back; `until_ns`: only those whose deadline is not later.

        The record of an answer that nobody got is not charged, unless it is written already.
        """
        for answers in (self._held, self._unsynced, self._syncing):
            for call, _ in answers:
                if not call.is_done and (until_ns is None or call.deadline_ns <= until_ns):
                    self._journal.amend(call.request_id, status=error.status, charged=False, reason=error.code)
                    call.refuse(error)
            answers[:] = [held for held in answers if not held[0].is_done]

    def close(self) -> None:
        """Write, sync and close the journal. Raise JournalError."""
        if self._timer is not None:
            self._timer.cancel()
        self._journal.close()

    # SyncListener ---------------------------------------------------------------------------------------------------

    def sync_began(self) -> None:
        self._syncing += self._unsynced
        self._unsynced = []

    def synced(self) -> None:
        if self._is_sync_refused:
            self._is_sync_refused = False
            self._unblocked()
        _let_go(self._syncing)
        self._syncing = []

    def sync_refused(self, error: JournalError) -> None:
        self._is_sync_refused = True
        self._blocked(error)

    # Within ---------------------------------------------------------------------------------------------------------

    def _written(self, answers: Answers) -> None:
        """The records of these answers, which were held, are written."""
        if self.waits_for_sync and answers:
            self._unsynced += answers
            self._watch()
        else:
            _let_go(answers)

    def _blocked(self, error: JournalError) -> None:
        self._metrics.journal_errors.inc()
        if not self.is_blocked:
            self.is_blocked = True
            log.error("the journal is refused: answers are held back", extra={"error": str(error)})
        self._watch()

    def _unblocked(self) -> None:
        self.is_blocked = self._is_refused or self._is_sync_refused
        if not self.is_blocked:
            log.warning("the journal accepts records again")

    def _watch(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_RETRY_S, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._is_refused:
            self.flush()
        overdue = StorageFull(
            "The model answered, but the disk did not take the record of it in time: free space on the disk of the "
            "platform's home, then try again",
            retry_after_s=_RETRY_S,
        )
        self.refuse_held(overdue, self._clock.monotonic_ns())
        if self.is_blocked or self._held or self._unsynced or self._syncing:
            self._watch()


def _let_go(answers: Answers) -> None:
    for call, reply in answers:
        call.finish(reply)
