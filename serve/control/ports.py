"""What the control plane asks of the other packages: exactly what it uses, declared here by the one who uses it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cache.manifest import FileEntry, Manifest
from serve.core.errors import ServeError
from serve.core.events import Phase, Ready
from serve.core.ids import ReplicaId, RevisionKey
from serve.core.revision import Revision, Route, State

# The store (cache.store.ModelStore) ----------------------------------------------------------------------------------


class Pin(Protocol):
    """Keeps a model in the store until released; the second time does nothing."""

    def release(self) -> None: ...


class Model(Protocol):
    """A model in the store (cache.store.StoredModel)."""

    @property
    def digest(self) -> str: ...

    @property
    def path(self) -> Path: ...

    @property
    def size_bytes(self) -> int: ...


class Store(Protocol):
    """Methods are documented in `cache.store`."""

    @property
    def used_bytes(self) -> int: ...

    @property
    def budget_bytes(self) -> int: ...

    def path(self, digest: str) -> Path: ...

    def missing(self, manifest: Manifest) -> list[FileEntry]: ...

    def pin(self, digest: str) -> Pin: ...

    async def put_blob(self, sha256: str, size: int, chunks: AsyncIterator[bytes]) -> bool: ...

    async def publish(self, manifest: Manifest) -> Model: ...

    async def delete(self, digest: str) -> None: ...

    async def check(self, digest: str) -> None: ...

    async def verify(self, digest: str) -> None: ...


Fetch = Callable[[str, Callable[[int, int | None], None]], Awaitable[Manifest]]
"""(url, progress(done_bytes, total_bytes)) → manifest of contents that are in the store now."""

# The autoscaler (autoscaler.loop.Autoscaler) -------------------------------------------------------------------------


class Warmed(Protocol):
    """A replica that was brought up on request (autoscaler.warm.WarmReport)."""

    @property
    def ready(self) -> Ready: ...

    @property
    def phases_ns(self) -> Mapping[Phase, int]:
        """Duration of each phase of its start."""
        ...

    @property
    def total_ns(self) -> int:
        """Ordered to ready."""
        ...


class ColdStarts(Protocol):
    """Recent starts of one revision in milliseconds, replica ordered to ready; empty before the first."""

    @property
    def total_ms(self) -> Mapping[str, float]:
        """Keys p50 and p95."""
        ...

    @property
    def phases_ms(self) -> Mapping[Phase, Mapping[str, float]]: ...


class ReplicaLine(Protocol):
    """One replica as `serve status` shows it (autoscaler.replica.ReplicaStatus)."""

    @property
    def id(self) -> ReplicaId: ...

    @property
    def pid(self) -> int | None: ...

    @property
    def state(self) -> str:
        """ordered, starting, ready, retiring or draining."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Reserved for it."""
        ...


class DecisionLine(Protocol):
    """One decision and its reason."""

    @property
    def key(self) -> RevisionKey: ...

    @property
    def wall_ns(self) -> int: ...

    @property
    def replicas_before(self) -> int: ...

    @property
    def replicas_after(self) -> int: ...

    @property
    def reason(self) -> str: ...


class Scaler(Protocol):
    """All calls are on the loop."""

    def add(self, revision: Revision, *, reachable: bool, start_s: float | None = None) -> None:
        """Scale this revision from now on. Not `reachable`: no traffic is sent to it, so `min` does not count.

        `start_s`: how long a start took when it was published, for what callers are told before the first one here.
        """

    def replace(self, revision: Revision) -> None:
        """The same revision with what publishing learned of it."""

    def set_reachable(self, key: RevisionKey, reachable: bool, /) -> None: ...

    async def remove(self, key: RevisionKey) -> None:
        """Drain and end its replicas; return when none is left."""

    async def warm(self, key: RevisionKey) -> Warmed:
        """Bring a replica up and hold it there until `release` or `remove`. Raise PublishError."""

    def release(self, key: RevisionKey) -> None:
        """End the hold of `warm`: the idle rule applies."""

    def state_of(self, key: RevisionKey) -> State: ...

    def describe(self, key: RevisionKey) -> Sequence[ReplicaLine]: ...

    def failure_of(self, key: RevisionKey) -> str | None:
        """Return why the revision counts as failed; None while it does not."""

    def cold_start_history(self, key: RevisionKey) -> ColdStarts:
        """Raise KeyError for a revision that was not added."""
        ...

    def decisions(self, name: str) -> Sequence[DecisionLine]:
        """The deployment's last decisions, oldest first."""


# The activator (activator.router.Router) -----------------------------------------------------------------------------


class Probed(Protocol):
    """The answer to an inference of the platform's own."""

    @property
    def status(self) -> int: ...

    @property
    def body(self) -> bytes: ...

    @property
    def total_ns(self) -> int: ...


class Router(Protocol):
    """All calls are on the loop."""

    def add_revision(self, revision: Revision) -> None:
        """Make calls of this revision possible, before `Scaler.add`; again: with what publishing learned of it."""

    def retire_revision(self, key: RevisionKey) -> None:
        """Hold nothing more for it, before `Scaler.remove`: who waits is told so, what is inside may finish."""

    def remove_revision(self, key: RevisionKey) -> None:
        """Forget it, after `Scaler.remove`."""

    def fail_pending(self, key: RevisionKey, error: ServeError) -> None:
        """Answer what waits for a revision: no replica can come."""

    def route(self, route: Route) -> None: ...

    def unroute(self, name: str) -> None: ...

    async def probe(self, key: RevisionKey, body: bytes, json_length: int) -> Probed:
        """Run one inference on exactly this revision. Raise ServeError where no answer came."""

    def queue_status(self, key: RevisionKey) -> tuple[int, int, int]:
        """Return (calls waiting, body bytes held, calls inside replicas)."""

    def replica_in_flight(self, replica_id: ReplicaId) -> int: ...


# The ledger (billing) ------------------------------------------------------------------------------------------------


class Books(Protocol):
    """Questions about money. Each first waits until the ledger has everything written so far."""

    async def bill(self, by: str, since_ns: int | None, until_ns: int | None) -> dict[str, Any]: ...

    async def bill_csv(self, by: str, since_ns: int | None, until_ns: int | None) -> str: ...

    async def verify(self, *, kernel: bool = False) -> dict[str, Any]:
        """Prove the ledger; `kernel`: with what the kernel counted of each replica."""

    async def request(self, request_id: str) -> dict[str, Any] | None:
        """Return a request's record with its cost, or None where the ledger does not have it."""
