"""What the control plane asks of the other packages: exactly the calls it makes, declared by the one who makes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from activator.router import ProbeResult
from autoscaler.history import ColdStartSummary, DecisionRecord
from autoscaler.replica import ReplicaStatus
from autoscaler.warm import WarmReport
from cache.manifest import FileEntry, Manifest
from serve.core.errors import ServeError
from serve.core.ids import ReplicaId, RevisionKey
from serve.core.revision import Revision, Route, State
from serve.core.spec import DeploymentSpec

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

    async def warm(self, key: RevisionKey) -> WarmReport:
        """Bring a replica up and hold it there until `release` or `remove`. Raise PublishError."""

    def release(self, key: RevisionKey) -> None:
        """End the hold of `warm`: the idle rule applies."""

    def state_of(self, key: RevisionKey) -> State: ...

    def describe(self, key: RevisionKey) -> Sequence[ReplicaStatus]: ...

    def failure_of(self, key: RevisionKey) -> str | None:
        """Return why the revision counts as failed; None while it does not."""

    def cold_start_history(self, key: RevisionKey) -> ColdStartSummary:
        """Raise KeyError for a revision that was not added."""
        ...

    def decisions(self, name: str) -> Sequence[DecisionRecord]:
        """The deployment's last decisions, oldest first."""


# The activator (activator.router.Router) -----------------------------------------------------------------------------


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

    async def probe(self, key: RevisionKey, body: bytes, json_length: int) -> ProbeResult:
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


# The simulator (serve.control.what_if) -------------------------------------------------------------------------------


class Forecaster(Protocol):
    async def forecast(
        self, revision: Revision, changed: DeploymentSpec, since_ns: int | None, until_ns: int | None
    ) -> dict[str, Any]:
        """Return what other settings would have changed in [since_ns, until_ns) of wall time. Raise ServeError."""
