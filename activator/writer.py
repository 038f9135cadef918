"""Answers leave when their records are on disk: one write for all of a turn, and none while the disk refuses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from activator.calls import Call, Reply
from billing.journal import Journal, JournalError
from serve.core.errors import StorageFull
from serve.core.metrics import Metrics

log = logging.getLogger(__name__)

_RETRY_S = 1.0


class AnswerWriter:
    """Writes the journal and lets answers go. Owned by the event loop.

    While the disk refuses, nothing is lost: records stay buffered, finished answers are held back, new requests are
    refused, and a retry every second lets everything go on by itself.
    """

    def __init__(self, journal: Journal, metrics: Metrics) -> None:
        self._journal = journal
        self._metrics = metrics
        self._held: list[tuple[Call, Reply]] = []
        self._retry_timer: asyncio.TimerHandle | None = None
        self._on_written: list[Callable[[], None]] = []
        self.is_blocked = False
        """The disk refuses records."""

    def on_written(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever records reached the disk: the ledger has something to read."""
        self._on_written.append(callback)

    def check(self) -> None:
        """Raise StorageFull while the disk refuses records: what cannot be billed is not taken in."""
        if self.is_blocked:
            raise StorageFull(
                "The billing journal cannot be written, so no request is taken in: free space on the disk of the "
                "platform's home",
                retry_after_s=_RETRY_S,
            )

    def release(self, answered: list[tuple[Call, Reply]]) -> None:
        """Write the records appended so far with one system call, then let these answers leave."""
        self._held += answered
        self._metrics.journal_records.inc(len(answered))
        self.flush()

    def flush(self) -> None:
        """Write what was appended; where the disk refuses, try again in a second."""
        try:
            self._journal.flush()
        except JournalError as error:
            self._refused(error)
            return
        if self.is_blocked:
            self.is_blocked = False
            log.warning("the journal accepts records again")
        held, self._held = self._held, []
        for call, reply in held:
            call.finish(reply)
        for callback in self._on_written:
            callback()

    def close(self) -> None:
        """Write, sync and close the journal. Raise JournalError."""
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        self._journal.close()

    def _refused(self, error: JournalError) -> None:
        self._metrics.journal_errors.inc()
        if not self.is_blocked:
            self.is_blocked = True
            log.error("the journal is refused: answers are held back", extra={"error": str(error)})
        if self._retry_timer is None:
            self._retry_timer = asyncio.get_running_loop().call_later(_RETRY_S, self._retry)

    def _retry(self) -> None:
        self._retry_timer = None
        self.flush()
