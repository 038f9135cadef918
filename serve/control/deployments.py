"""Deployments as they run: registry, routes, scaling and pins are changed here, together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from serve.control.ports import Pin, Router, Scaler, Store
from serve.control.registry import Deployment, Registry, StoredRevision, Weights
from serve.core.errors import Conflict, Draining, ModelFailed, NotFound, ServeError, UnknownVersion
from serve.core.ids import RevisionKey
from serve.core.lifecycle import Lifecycle
from serve.core.revision import Route, State

log = logging.getLogger(__name__)


class Deployments:
    """Owned by the event loop. One change of a deployment at a time: whoever makes one holds its claim.

    The registry changes first; everything else follows in the same loop turn, so a crash leaves nothing half done.
    """

    def __init__(self, registry: Registry, store: Store, scaler: Scaler, router: Router, lifecycle: Lifecycle) -> None:
        self.registry = registry
        self.store = store
        self.scaler = scaler
        self.router = router
        self._lifecycle = lifecycle
        self._claims: dict[str, str] = {}
        self._is_closing = False
        self._pins: dict[RevisionKey, Pin] = {}
        self._dropping: set[asyncio.Task[None]] = set()

    def restore(self) -> None:
        """Bring back what the registry says: every retained revision can be called, none is started by this."""
        for deployment in self.registry.deployments.values():
            for stored in deployment.revisions.values():
                self._restore(stored)
            self._route(deployment)
            for stored in deployment.revisions.values():
                if stored.revision.key in self._pins:
                    reachable = _has_traffic(deployment, stored.number)
                    self.scaler.add(stored.revision, reachable=reachable, start_s=_start_s(stored))

    @contextmanager
    def claim(self, name: str, doing: str) -> Iterator[None]:
        """Hold the right to change the deployment `name`. Raise Conflict while somebody else has it, or Draining."""
        if self._is_closing:
            raise Draining("the platform is shutting down; try again when it is up", retry_after_s=5.0)
        if name in self._claims:
            raise Conflict(f"'{name}' is being {self._claims[name]}; try again when that is done")
        self._claims[name] = doing
        try:
            yield
        finally:
            del self._claims[name]

    def close(self) -> None:
        """Let nobody begin a change any more."""
        self._is_closing = True

    @property
    def claims(self) -> dict[str, str]:
        """Return what is being done now, by deployment."""
        return dict(self._claims)

    def is_servable(self, key: RevisionKey) -> bool:
        """Tell whether the revision's model is here."""
        return key in self._pins

    def announce(self, name: str) -> None:
        """The first revision of this name is being published: callers are told so until it answers."""
        if name not in self.registry.deployments:
            self.router.route(Route(name, State.PUBLISHING, (), {}))

    def withdraw(self, name: str) -> None:
        """The first publish failed: the name means nothing again."""
        if name not in self.registry.deployments:
            self.router.unroute(name)

    def activate(self, stored: StoredRevision, pin: Pin, dropped: Sequence[StoredRevision]) -> None:
        """Give all traffic to a revision that the registry has just taken in. It is with scaler and router already."""
        key = stored.revision.key
        self._pins[key] = pin
        self.router.add_revision(stored.revision)
        self.scaler.replace(stored.revision)
        self._show_traffic(self.registry.get(key.name))
        self.scaler.release(key)
        if dropped:
            self._lifecycle.spawn(f"retire old revisions of {key.name}", self._retire(dropped))

    async def rollback(self, name: str, number: int | None) -> int:
        """Give the traffic to a retained revision, with its settings; None: the newest before the current one.

        It has answered before, so nothing is started now. Raise UnknownModel, UnknownVersion, NotFound or Conflict.
        """
        with self.claim(name, "rolled back"):
            deployment = self.registry.get(name)
            target = _earlier(deployment) if number is None else deployment.revision(number).number
            if not self.is_servable(RevisionKey(name, target)):
                raise NotFound(f"the model of '{name}' revision {target} is not in the store; deploy it again")
            await self.registry.set_traffic(name, ((target, 1),), self._show_traffic)
            return target

    async def delete(self, name: str) -> None:
        """End the deployment: no new calls, those inside finish, revisions go. Raise UnknownModel or Conflict.

        Returns when nothing of it runs. From the commit on it goes on by itself if the caller leaves, and the name may
        be used again: its numbers are new ones.
        """
        retiring: set[asyncio.Task[None]] = set()

        def committed(deployment: Deployment) -> None:
            self.router.unroute(name)
            revisions = list(deployment.revisions.values())
            retiring.add(self._lifecycle.spawn(f"retire {name}", self._retire(revisions)))

        with self.claim(name, "deleted"):
            await self.registry.delete(name, committed)
        await asyncio.wait(retiring)

    def damaged(self, digests: Sequence[str]) -> dict[str, str]:
        """The store has put these models aside: nothing is served from them any more, until they are there again.

        Return {digest: URL} of those that can be fetched.
        """
        sources: dict[str, str] = {}
        for deployment in list(self.registry.deployments.values()):
            lost = [stored for stored in deployment.revisions.values() if stored.revision.digest in digests]
            pinned = [(stored, self._pins.pop(stored.revision.key, None)) for stored in lost]
            sources |= {stored.revision.digest: stored.source for stored in lost if stored.source}
            if lost:
                self._route(deployment)
            for stored, pin in pinned:
                if pin is not None:
                    key = stored.revision.key
                    why = ModelFailed(
                        f"the stored model of '{key.name}' revision {key.number} is damaged; deploy it again"
                    )
                    dropped = self._lifecycle.spawn(f"drop {key}", self._drop(key, pin, why))
                    self._dropping.add(dropped)
                    dropped.add_done_callback(self._dropping.discard)
        return sources

    async def returned(self, digest: str) -> None:
        """A model that had been put aside is in the store again: its revisions can be called as before."""
        if self._dropping:
            await asyncio.wait(self._dropping)
        for deployment in list(self.registry.deployments.values()):
            for stored in deployment.revisions.values():
                key = stored.revision.key
                if stored.revision.digest == digest and key not in self._pins:
                    self._restore(stored)
                    self._route(deployment)
                    if key in self._pins:
                        reachable = _has_traffic(deployment, stored.number)
                        self.scaler.add(stored.revision, reachable=reachable, start_s=_start_s(stored))

    def memory_learned(self, key: RevisionKey, size_bytes: int) -> None:
        """Remember a revision's high-water mark, so that the next start of the platform reserves enough."""
        deployment = self.registry.deployments.get(key.name)
        if deployment is not None and key.number in deployment.revisions:
            self._lifecycle.spawn(f"remember memory of {key}", self._remember_memory(key, size_bytes))

    async def _remember_memory(self, key: RevisionKey, size_bytes: int) -> None:
        try:
            await self.registry.set_memory(key, size_bytes)
        except ServeError as error:
            log.warning("a high-water mark was not written", extra={"revision": str(key), "error": str(error)})

    def _restore(self, stored: StoredRevision) -> None:
        revision = stored.revision
        try:
            self._pins[revision.key] = self.store.pin(revision.digest)
        except NotFound:
            log.error("the model of a revision is not in the store: deploy it again", extra={"revision": revision.key})
            return
        self.router.add_revision(revision)

    def _show_traffic(self, deployment: Deployment) -> None:
        self._route(deployment)
        for stored in deployment.revisions.values():
            if stored.revision.key in self._pins:
                self.scaler.set_reachable(stored.revision.key, _has_traffic(deployment, stored.number))

    def _route(self, deployment: Deployment) -> None:
        revisions = {
            number: stored.revision
            for number, stored in deployment.revisions.items()
            if stored.revision.key in self._pins
        }
        weights: Weights = tuple(pair for pair in deployment.weights if pair[0] in revisions)
        state = State.COLD if weights else State.FAILED
        self.router.route(Route(deployment.name, state, weights, revisions))

    async def _retire(self, revisions: Sequence[StoredRevision]) -> None:
        """Let the replicas of revisions that nobody can call any more finish; then let go of their models."""
        for stored in revisions:
            key = stored.revision.key
            pin = self._pins.pop(key, None)
            if pin is None:
                continue
            await self._drop(key, pin)
            try:
                await self.store.delete(stored.revision.digest)
            except Conflict:
                log.debug("another revision has the same model: it stays", extra={"revision": str(key)})

    async def _drop(self, key: RevisionKey, pin: Pin, why: ServeError | None = None) -> None:
        """End what runs of a revision and forget it; `why`: what callers that wait for it are told."""
        if why is not None:
            self.router.fail_pending(key, why)
        # Before the last request inside is done: nothing is started for it any more, so nobody may wait for it.
        self.router.retire_revision(key)
        try:
            await self.scaler.remove(key)
        finally:
            self.router.remove_revision(key)
            pin.release()


def _has_traffic(deployment: Deployment, number: int) -> bool:
    return any(number == carrier for carrier, _ in deployment.weights)


def _start_s(stored: StoredRevision) -> float | None:
    """Return how long its cold start took when it was published; None where it answered nothing then."""
    cold_start = stored.receipt.get("cold_start")
    return cold_start["total_ms"] / 1000 if cold_start else None


def _earlier(deployment: Deployment) -> int:
    current = deployment.current.number
    earlier = [number for number in deployment.revisions if number < current]
    if not earlier:
        raise UnknownVersion(
            f"'{deployment.name}' has no retained revision before {current}; `serve history` lists what there is"
        )
    return max(earlier)
