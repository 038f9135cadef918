"""The real control plane beside a platform on paper: registry, deployments and publishing, without HTTP and a store."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.manifest import FileEntry, Manifest
from serve.control.deployments import Deployments
from serve.control.publish import Publisher, Site
from serve.control.registry import Registry, StoredRevision
from serve.control.wire import DeployBody
from serve.core.events import TensorSpec
from serve.core.home import Home
from serve.core.ids import RevisionKey
from serve.core.lifecycle import Lifecycle
from serve.core.revision import Revision, Signature
from serve.core.spec import DeploymentSpec
from simulator.platform import SimulatedPlatform

MIB = 1 << 20
ENGINES = frozenset({"scripted", "python"})
_SPECS = (TensorSpec("x", "FP32", (-1, 4)),)


@dataclass(frozen=True)
class PaperModel:
    digest: str
    path: Path = Path("/nowhere")
    size_bytes: int = 1


class PaperPin:
    def __init__(self, pins: Counter[str], digest: str) -> None:
        self._pins, self._digest, self._is_held = pins, digest, True
        pins[digest] += 1

    def release(self) -> None:
        self._pins[self._digest] -= self._is_held
        self._is_held = False


class PaperStore:
    """Has every model there could be. A `serve.control.ports.Store`."""

    used_bytes = budget_bytes = 0

    def __init__(self) -> None:
        self.pins: Counter[str] = Counter()

    def path(self, digest: str) -> Path:
        return Path("/nowhere")

    def pin(self, digest: str) -> PaperPin:
        return PaperPin(self.pins, digest)

    def missing(self, manifest: Manifest) -> list[FileEntry]:
        return []

    async def publish(self, manifest: Manifest) -> PaperModel:
        return PaperModel(manifest.digest)

    async def delete(self, digest: str) -> None: ...

    async def check(self, digest: str) -> None: ...

    async def verify(self, digest: str) -> None: ...

    async def put_blob(self, sha256: str, size: int, chunks: Any) -> bool:
        raise AssertionError("nothing is uploaded on paper")


class PaperControl:
    """Owned by the loop of its platform."""

    def __init__(self, platform: SimulatedPlatform, folder: Path, lifecycle: Lifecycle) -> None:
        self.store = PaperStore()
        self.registry = Registry(folder / "registry.db", self.store.path, keep_revisions=3)
        self.deployments = Deployments(self.registry, self.store, platform.autoscaler, platform.router, lifecycle)
        site = Site(
            home=Home(folder),
            clock=platform.clock,
            cores=1,
            body_limit_bytes=MIB,
            prices=lambda: platform.machine.prices.entries[0],
            endpoint_base="http://paper",
            engines=ENGINES,
        )
        self.publisher = Publisher(self.deployments, _no_fetch, site)

    async def open(self, initial: Sequence[StoredRevision]) -> None:
        """Bring back what the registry says; the first time, after writing `initial` into it."""
        self.registry.open()
        for stored in initial:
            await self.registry.reserve_number(stored.revision.key.name)
            await self.registry.add(stored, lambda _dropped: None)
        self.deployments.restore()

    async def deploy(self, spec: dict[str, Any], content: bytes) -> int:
        """Publish; return the revision's number. Raise ServeError."""
        sha256 = hashlib.sha256(content).hexdigest()
        files = [{"path": "model.bin", "size": len(content), "sha256": sha256}]
        body = DeployBody.model_validate({"spec": spec, "model": {"file": "model.bin", "files": files}})
        async with self.publisher.admit(body) as publication:
            published = await publication.run(_ignore)
        return int(published.receipt["revision"])

    def bury(self) -> None:
        """Close what the death of the process closes; an open transaction is rolled back."""
        if self.registry._connection is not None:
            self.registry._connection.close()
        self.registry._writer.shutdown(wait=False)


def stored_revision(spec: dict[str, Any], *, memory_bytes: int, batchable: bool, wall_ns: int) -> StoredRevision:
    """Return a first revision as publishing would have left it."""
    settings = DeploymentSpec(**spec)
    revision = Revision(
        key=RevisionKey(settings.name, 1),
        spec=settings,
        digest=hashlib.sha256(settings.name.encode()).hexdigest(),
        model_dir="/nowhere",
        model_file="model.bin",
        threads=1,
        memory_bytes=memory_bytes,
        signature=Signature("paper", _SPECS, _SPECS, batchable),
    )
    return StoredRevision(revision, 1, {"verified": True}, wall_ns)


def _ignore(step: str, message: str, *, done_bytes: int | None = None, total_bytes: int | None = None) -> None:
    pass


async def _no_fetch(url: str, progress: Any) -> Manifest:
    raise AssertionError("nothing is fetched on paper")
