"""The control plane put together from its parts and the platform around it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from billing.prices import PriceBook
from cache.manifest import Manifest
from cache.sources.fetch import fetch, ignore_progress
from cache.sources.http import shown_url
from cache.store import ModelStore
from serve.control.api import Control, control_app
from serve.control.deployments import Deployments
from serve.control.ports import Books, Forecaster, Router, Scaler
from serve.control.publish import Publisher, Site
from serve.control.registry import Registry
from serve.control.views import count_states
from serve.core.clock import Clock
from serve.core.errors import ServeError, SourceChanged
from serve.core.home import Home
from serve.core.ids import RequestIds, RevisionKey, new_writer_id
from serve.core.lifecycle import Lifecycle
from serve.core.metrics import Metrics
from serve.core.revision import State

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the control plane needs of the platform."""

    home: Home
    clock: Clock
    metrics: Metrics
    lifecycle: Lifecycle
    store: ModelStore
    scaler: Scaler
    router: Router
    books: Books
    forecaster: Forecaster
    prices: Callable[[], PriceBook]
    describe_platform: Callable[[], dict[str, Any]]
    """Version, pid, addresses: what `/api/v1/platform` says first."""
    data_url: str
    """URL of the data plane, without a slash at the end."""
    hosts: Iterable[str]
    """Names besides loopback under which the API may be called."""
    cores: int
    body_limit_bytes: int
    keep_revisions: int
    engines: frozenset[str]
    """Those that may be deployed here."""


class ControlPlane:
    """Owned by the event loop: `restore` before the first request, `close` when draining begins, `end` at the end."""

    def __init__(self, around: Surroundings) -> None:
        registry = Registry(around.home.registry, around.store.path, around.keep_revisions)
        self.deployments = Deployments(registry, around.store, around.scaler, around.router, around.lifecycle)
        site = Site(
            home=around.home,
            clock=around.clock,
            cores=around.cores,
            body_limit_bytes=around.body_limit_bytes,
            prices=lambda: around.prices().at(around.clock.wall_ns()),
            endpoint_base=around.data_url,
            engines=around.engines,
        )
        self._metrics = around.metrics
        self._around = around
        self._publisher = Publisher(self.deployments, self._fetch, site)
        control = Control(
            deployments=self.deployments,
            publisher=self._publisher,
            books=around.books,
            forecaster=around.forecaster,
            home=around.home,
            platform=around.describe_platform,
            body_limit_bytes=around.body_limit_bytes,
        )
        self.app = control_app(
            control,
            around.home.token() or around.home.create_token(),
            RequestIds(new_writer_id()),
            around.metrics,
            around.hosts,
        )
        """ASGI app for everything below `/api`."""

    def restore(self) -> None:
        """Open the registry and bring back what it says. Raise ServeError with the remedy."""
        self.deployments.registry.open()
        self.deployments.restore()

    def memory_learned(self, key: RevisionKey, size_bytes: int) -> None:
        """Is the autoscaler's `on_memory_learned`."""
        self._publisher.memory_learned(key, size_bytes)

    def damaged(self, digests: Sequence[str]) -> None:
        """The store has put these models aside: fetch again what came from a URL."""
        for digest, url in self.deployments.damaged(digests).items():
            self._around.lifecycle.spawn(f"fetch {digest[:12]} again", self._fetch_again(digest, url))

    async def _fetch_again(self, digest: str, url: str) -> None:
        try:
            manifest = await self._fetch(url, ignore_progress)
            if manifest.digest != digest:
                raise SourceChanged(f"{shown_url(url)} is another model now")
            await self._around.store.publish(manifest)
            await self.deployments.returned(digest)
        except (ServeError, OSError) as error:  # such as a disk that fails again, or no descriptor free
            log.error("a damaged model was not fetched again: deploy it again", extra={"error": str(error)})
        else:
            log.warning("a damaged model was fetched again", extra={"digest": digest, "url": shown_url(url)})

    async def _fetch(self, url: str, progress: Callable[[int, int | None], None]) -> Manifest:
        return await fetch(url, self._around.store, progress)

    def measure(self) -> None:
        """Set the gauge of deployments by state: called when somebody reads the metrics."""
        counts = count_states(self.deployments)
        for state in State:
            self._metrics.deployments.labels(state.value).set(counts[state])

    def close(self) -> None:
        """Refuse changes from now on: the platform is shutting down."""
        self.deployments.close()

    def end(self) -> None:
        """Close the registry, after the lifecycle's tasks."""
        self.deployments.registry.close()
