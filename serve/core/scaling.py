"""The two small protocols on which activator and autoscaler meet: demand out, ready replicas in.

Neither imports the other. In the one-machine platform both live on one event loop and call each other directly;
on Kubernetes each side has a network twin of the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from serve.core.errors import ServeError
from serve.core.events import Event, ExitReason, Phase, Ready
from serve.core.ids import ReplicaId, RevisionKey

if TYPE_CHECKING:
    from serve.core.link import Link

_SIGKILL = 9


@dataclass(frozen=True, slots=True)
class Demand:
    """What a revision's gate has seen. Cumulative figures, so that readers take differences and nothing is missed."""

    in_flight: int
    """Dispatched and unanswered."""
    pending: int
    """Accepted and waiting."""
    concurrency_ns: int
    """Integral of (in flight + pending) over time, ns: the difference over an interval ÷ its length = average."""
    peak: int
    """Highest (in flight + pending) since the previous reading: latches bursts that end between two readings."""
    arrivals: int
    """Requests that came since start, whatever became of them."""
    turned_away: int
    """Those of them that could neither be answered nor wait, since start: nothing else tells of them afterwards."""
    last_active_ns: int
    """Monotonic time when something was last in flight or pending; `now` while there is. 0 = never."""


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """A replica whose life has begun: from `assigned_ns` on, somebody pays."""

    id: ReplicaId
    key: RevisionKey
    pid: int
    cores: int
    memory_bytes: int
    assigned_ns: int
    """Monotonic: the order to start was given."""
    assigned_wall_ns: int


@dataclass(frozen=True, slots=True)
class Exited:
    """A replica's process is gone: reaped, nothing of it is left."""

    id: ReplicaId
    reason: ExitReason
    at_ns: int
    exit_code: int | None
    signal: int | None
    message: str
    """One sentence for a person: what happened and, where known, the last words of its log."""
    cpu_us: int | None = None
    """Processor time the kernel counted of it, all threads; None where somebody else reaped it."""
    peak_rss_bytes: int | None = None
    """The kernel's high-water mark of its resident memory, shared pages included."""

    @property
    def is_killed_from_outside(self) -> bool:
        """Whether somebody else sent it SIGKILL: says nothing about the model.

        No engine does that to itself, and where the kernel does it for want of memory the reason is another.
        """
        return self.reason is ExitReason.CRASHED and self.signal == _SIGKILL


class ReplicaPool(Protocol):
    """The activator as the autoscaler sees it. All calls are on the loop and return at once."""

    def demand(self, key: RevisionKey, now_ns: int) -> Demand:
        """Return the revision's demand; resets `peak`."""

    def replica_assigned(self, info: ReplicaInfo) -> None:
        """A life begins; nothing can be sent to it yet."""

    def replica_ready(self, replica_id: ReplicaId, link: Link, ready: Ready, phases: dict[Phase, int]) -> None:
        """Requests may go to it now. The pool becomes the link's receiver and passes events on to the listener.

        `phases`: duration in ns of each phase of its start, QUEUE and INFER excepted.
        """

    def replica_retired(self, replica_id: ReplicaId) -> None:
        """Send it nothing new. The listener hears `replica_empty` once nothing is in flight (at once if so now)."""

    def replica_gone(self, exited: Exited) -> None:
        """Its life is over. Requests inside are replayed or answered with the reason."""

    def replica_in_flight(self, replica_id: ReplicaId) -> int:
        """Requests inside it: 0 = idle, may be a victim."""

    def fail_pending(self, key: RevisionKey, error: ServeError) -> None:
        """No replica can come: answer everything that waits for this revision with `error`."""


class DemandListener(Protocol):
    """The autoscaler as the activator sees it. All calls are on the loop and return at once."""

    def poke(self, key: RevisionKey) -> None:
        """Demand needs a decision in this loop turn: the first request waits, or all slots are taken."""

    def replica_empty(self, replica_id: ReplicaId) -> None:
        """A retired replica has nothing in flight any more."""

    def replica_event(self, replica_id: ReplicaId, event: Event) -> None:
        """The replica reported something on the link."""

    def replica_overdue(self, replica_id: ReplicaId, sentence: str) -> None:
        """A request inside it passed the execution timeout: kill it."""

    def replica_link_lost(self, replica_id: ReplicaId) -> None:
        """Its socket closed. It is dead or dying; `replica_gone` will follow."""
