"""How long to leave a revision alone after its replicas failed."""

from __future__ import annotations

from collections.abc import Callable

from serve.core.clock import NS_PER_S

FIRST_DELAY_NS = NS_PER_S // 5
LONGEST_DELAY_NS = 60 * NS_PER_S
SHORT_LIFE_NS = 10 * NS_PER_S
"""A ready replica that crashes sooner than this after the previous one crashed as well is in a crash loop."""
EXCUSED_KILLS = 10
"""Replicas that were killed from outside while they started, in a row: more are no coincidence, but a failure."""


class Backoff:
    """Failures of one revision in a row, and until when nothing is to be started. Owned by its fleet.

    The delay doubles from 0.2 s to 60 s; each is shortened by up to half at random, so that models that fail for a
    common reason do not come back in step.
    """

    def __init__(self, jitter: Callable[[], float]) -> None:
        self.failures = 0
        """Starts that failed since a replica was last ready."""
        self.until_ns = 0
        self._crashes = 0
        self._kills = 0
        self._jitter = jitter

    def start_failed(self, now_ns: int) -> None:
        self.failures += 1
        self.until_ns = now_ns + self._delay_ns(self.failures)

    def excuses_kill(self, now_ns: int) -> bool:
        """Somebody else killed it while it started. Return whether that counts as no failure: the first time, another
        is started at once, later after the shortest pause.
        """
        self._kills += 1
        if 1 < self._kills <= EXCUSED_KILLS:
            self.until_ns = now_ns + self._delay_ns(1)
        return self._kills <= EXCUSED_KILLS

    def became_ready(self) -> None:
        self._kills = 0
        self.failures = 0
        self.until_ns = 0

    def crashed(self, ready_for_ns: int, now_ns: int) -> None:
        """A ready replica died by itself. The first is replaced at once; a loop of crashes is slowed down."""
        self._crashes = self._crashes + 1 if ready_for_ns < SHORT_LIFE_NS else 1
        if self._crashes > 1:
            self.until_ns = now_ns + self._delay_ns(self._crashes - 1)

    def _delay_ns(self, failures: int) -> int:
        full_ns = min(LONGEST_DELAY_NS, FIRST_DELAY_NS << min(failures - 1, 16))
        return round(full_ns * (1 - self._jitter() / 2))
