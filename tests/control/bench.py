"""A control plane on a workbench: real registry, store and HTTP app, fakes around them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from billing.prices import PriceBook, Prices
from cache.manifest import FileEntry, Manifest
from cache.store import ModelStore
from serve.control.app import ControlPlane, Surroundings
from serve.control.publish import Published, Publisher
from serve.control.registry import StoredRevision
from serve.control.wire import DeployBody
from serve.core.clock import SystemClock
from serve.core.home import Home
from serve.core.ids import RevisionKey
from serve.core.lifecycle import Lifecycle
from serve.core.metrics import Metrics
from serve.core.revision import Revision, Signature
from serve.core.spec import DeploymentSpec
from tests.control.fakes import FakeBooks, FakeForecaster, FakeRouter, FakeScaler, ready

PRICES = Prices(0, "USD", 24_000, 2_500, 0)


@dataclass
class Bench:
    home: Home
    store: ModelStore
    scaler: FakeScaler
    router: FakeRouter
    plane: ControlPlane
    metrics: Metrics
    forecaster: FakeForecaster

    @property
    def publisher(self) -> Publisher:
        return self.plane._publisher

    async def put(self, *contents: bytes) -> None:
        for content in contents:
            await self.store.put_blob(sha256(content), len(content), _chunks(content))

    async def deploy(self, content: bytes = b"model", sample: Any = None, **spec: Any) -> Published:
        """Publish a model of one file with the scripted engine, whose models are not read beforehand."""
        await self.put(content)
        async with self.publisher.admit(deploy_body(content, sample, **spec)) as publication:
            return await publication.run(ignore_progress)


def ignore_progress(step: str, message: str, *, done_bytes: int | None = None, total_bytes: int | None = None) -> None:
    pass


def deploy_body(content: bytes = b"model", sample: Any = None, **spec: Any) -> DeployBody:
    return DeployBody.model_validate(deploy_json(content, sample, **spec))


def deploy_json(content: bytes = b"model", sample: Any = None, **spec: Any) -> dict[str, Any]:
    file = {"path": "model.bin", "size": len(content), "sha256": sha256(content)}
    settings = {"name": "digits", "engine": "scripted"} | spec
    return {"spec": settings, "model": {"file": "model.bin", "files": [file]}, "sample": sample}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def manifest(content: bytes = b"model") -> Manifest:
    return Manifest((FileEntry("model.bin", len(content), sha256(content)),))


def stored_revision(number: int, name: str = "digits", **spec: Any) -> StoredRevision:
    """Return a revision as it stands in the registry."""
    loaded = ready()
    revision = Revision(
        key=RevisionKey(name, number),
        spec=DeploymentSpec(name=name, **spec),
        digest=sha256(b"model"),
        model_dir="/models/m",
        model_file="model.bin",
        threads=1,
        memory_bytes=30 << 20,
        signature=Signature(loaded.platform, loaded.inputs, loaded.outputs, loaded.batchable),
    )
    return StoredRevision(revision, 5, {"name": name, "revision": number, "verified": True}, 1_700_000_000_000 + number)


@asynccontextmanager
async def bench(path: Path, cores: int = 1, keep_revisions: int = 10) -> AsyncIterator[Bench]:
    """Run a control plane on the home at `path`; entering again is a restart."""
    home = Home(path)
    home.create()
    clock, metrics = SystemClock(), Metrics()
    store = ModelStore(home.store, 1 << 20, clock)
    scaler, router, forecaster = FakeScaler(), FakeRouter(), FakeForecaster()
    async with Lifecycle() as lifecycle:
        plane = ControlPlane(
            Surroundings(
                home=home,
                clock=clock,
                metrics=metrics,
                lifecycle=lifecycle,
                store=store,
                scaler=scaler,
                router=router,
                books=FakeBooks(),
                forecaster=forecaster,
                prices=lambda: PriceBook([PRICES]),
                describe_platform=lambda: {"version": "0"},
                data_url="http://127.0.0.1:8000",
                hosts=["serve.example"],
                cores=cores,
                body_limit_bytes=1 << 20,
                keep_revisions=keep_revisions,
                engines=frozenset({"onnx", "scripted"}),
            )
        )
        plane.restore()
        try:
            yield Bench(home, store, scaler, router, plane, metrics, forecaster)
        finally:
            plane.close()
            lifecycle.stop()
    plane.end()


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other tasks and threads are about to do; the test's own timeout ends it."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def at_step(platform: Bench, number: int, act: Callable[[], object]) -> list[int]:
    """Have the `number`-th step of a publish `act`: each call below is a step before it and a step after it.

    Returns a list of one: how many steps were reached.
    """
    reached = [0]

    def step() -> None:
        reached[0] += 1
        if reached[0] == number:
            act()

    def wrap(owner: object, method: str) -> None:
        original = getattr(owner, method)

        async def stepped(*args: Any, **kwargs: Any) -> Any:
            step()
            result = await original(*args, **kwargs)
            step()
            return result

        setattr(owner, method, stepped)

    wrap(platform.store, "publish")
    wrap(platform.plane.deployments.registry, "reserve_number")
    wrap(platform.scaler, "warm")
    wrap(platform.router, "probe")
    wrap(platform.plane.deployments.registry, "add")
    return reached
