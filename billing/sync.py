"""Brings a journal to the disk itself, so that a power loss costs little: in a thread, never on the loop.

What the kernel has taken survives the death of any process. Only a machine that loses power, or its kernel, forgets
what was not synced.
"""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Protocol

from billing.journal import Journal, JournalError, Unsynced


class SyncPolicy(StrEnum):
    NONE = "none"
    """At the end of each journal file, and of the platform."""
    INTERVAL = "interval"
    """At most once a second, and no answer waits for it."""
    ALWAYS = "always"
    """Before each answer; those that come meanwhile share the next one."""


class SyncListener(Protocol):
    """Called on the loop."""

    def sync_began(self) -> None:
        """What is written by now is being synced."""

    def synced(self) -> None:
        """What was written when it began is on the disk."""

    def sync_refused(self, error: JournalError) -> None:
        """Nobody knows what of it is; it is tried again."""


class JournalSync:
    """Owned by the event loop. One sync at a time, in a thread of its own: a slow disk must not stop other threads."""

    def __init__(self, journal: Journal, policy: SyncPolicy, listener: SyncListener, interval_s: float = 1.0) -> None:
        self._journal = journal
        self._policy = policy
        self._listener = listener
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal-sync")
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._running: asyncio.Future[None] | None = None
        self._next_s = 0.0
        self._is_wanted = False
        self._is_closed = False

    def written(self) -> None:
        """Records were written: see that they are synced as the policy says. On the hot path."""
        self._is_wanted = True
        if self._timer is None and self._running is None:
            self._arm()

    async def close(self) -> None:
        """Let a running sync end; none begins after this. What is left, `Journal.close` syncs."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._running is not None:
            await asyncio.wait([self._running])
        self._thread.shutdown()

    def _arm(self) -> None:
        if self._is_closed or (self._policy is SyncPolicy.NONE and not self._journal.has_complete_files):
            return
        if self._policy is SyncPolicy.ALWAYS and self._next_s <= self._loop.time():
            self._timer = self._loop.call_soon(self._begin)  # with all that this turn of the loop still writes
        else:
            self._timer = self._loop.call_at(self._next_s, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._is_wanted = False
        handed = self._journal.unsynced()
        if handed is None:
            return
        self._listener.sync_began()
        if self._policy is not SyncPolicy.ALWAYS:
            self._next_s = self._loop.time() + self._interval_s
        self._running = self._loop.run_in_executor(self._thread, handed.sync)
        self._running.add_done_callback(functools.partial(self._ended, handed))

    def _ended(self, handed: Unsynced, done: asyncio.Future[None]) -> None:
        self._running = None
        error = done.exception()
        if error is None:
            self._listener.synced()
        else:
            self._next_s = self._loop.time() + self._interval_s
            self._is_wanted = True
            self._listener.sync_refused(self._journal.sync_failed(handed, error))
        if self._is_wanted:
            self._arm()
