"""Publishing: from settings and a model to a revision that has answered, or to nothing at all.

What can be refused without starting anything is refused by `admit`, before a caller hears that work has begun. The
point of no return is the registry's commit. Before it, failure and cancellation (a client that leaves) end the same
way: the candidate's replica is gone, the model unpinned, the running revision as it was; only a number is used up.
After it, the revision is deployed whether or not somebody still listens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from billing.prices import Prices
from cache.manifest import Manifest
from serve.control import receipt, sample_file
from serve.control.candidate import Progress, Trial, Trials
from serve.control.deployments import Deployments
from serve.control.model_check import check_model
from serve.control.ports import Fetch, Model, Pin
from serve.control.registry import StoredRevision
from serve.control.sample import Body, candidates, given
from serve.control.wire import DeployBody
from serve.core.clock import NS_PER_MS, Clock
from serve.core.errors import FilesMissing, IntegrityError, InvalidSpec, NotFound, SampleFailed, ServeError
from serve.core.home import Home
from serve.core.ids import RevisionKey
from serve.core.revision import Revision, Signature

THREADS_WORTH_TRYING_NS = 5 * NS_PER_MS
"""Below this, an inference is not split among threads: handing it out costs as much as it saves."""
THREADS_WORTH_KEEPING = 1.2
"""Several threads must be this much faster: their cores are paid for."""


@dataclass(frozen=True, slots=True)
class Published:
    """The end of a publish. `is_unchanged`: the current revision is this one already."""

    receipt: dict[str, Any]
    is_unchanged: bool


@dataclass(frozen=True, slots=True)
class Site:
    """What a publish must know of the platform around it."""

    home: Home
    clock: Clock
    cores: int
    body_limit_bytes: int
    prices: Callable[[], Prices]
    """The prices in force now."""
    endpoint_base: str
    """URL of the data plane, without a slash at the end."""
    engines: frozenset[str]
    """Those that may be deployed here."""


class Publisher:
    """Owned by the event loop. One publish per name at a time, any number of names."""

    def __init__(self, deployments: Deployments, fetch: Fetch, site: Site) -> None:
        self._deployments = deployments
        self._store = deployments.store
        self._fetch = fetch
        self._site = site
        self._trials = Trials(deployments.scaler, deployments.router, site.clock)

    @asynccontextmanager
    async def admit(self, request: DeployBody) -> AsyncIterator[Publication]:
        """Claim the name and check what can be checked without starting anything.

        Raise Conflict, InvalidSpec, FilesMissing (`files`: what to upload, or to add and upload) or ModelInvalid.
        """
        if request.spec.engine not in self._site.engines:
            known = ", ".join(sorted(self._site.engines))
            raise InvalidSpec(f"engine: '{request.spec.engine}' cannot be deployed here; known are {known}")
        manifest = request.model.manifest()
        with self._deployments.claim(request.spec.name, "published"):
            publication = Publication(self, request)
            try:
                if manifest is not None:
                    await publication.take(manifest, request.model.file or "")
                yield publication
            finally:
                publication.let_go()

    def memory_learned(self, key: RevisionKey, size_bytes: int) -> None:
        """A replica of `key` holds more than was known: the autoscaler's `on_memory_learned`."""
        if not self._trials.memory_learned(key, size_bytes):
            self._deployments.memory_learned(key, size_bytes)

    # Steps of a publication ------------------------------------------------------------------------------------------

    async def look(self, digest: str) -> None:
        """See that a model that is here already is whole: what is deployed again is meant to run."""
        try:
            await self._store.check(digest)
        except NotFound:
            pass
        except IntegrityError as error:
            self._deployments.damaged(error.details["models"])

    def current(self, request: DeployBody, digest: str, model_file: str) -> StoredRevision | None:
        """Return the current revision if publishing would only make it again."""
        deployment = self._deployments.registry.deployments.get(request.spec.name)
        if deployment is None:
            return None
        stored = deployment.current
        known = stored.revision
        is_same = (known.digest, known.model_file, known.spec) == (digest, model_file, request.spec)
        is_whole = self._deployments.is_servable(known.key) and len(deployment.weights) == 1
        # A sample can make an unverified revision a verified one.
        has_news = request.sample is not None and not stored.receipt["verified"]
        return stored if is_same and is_whole and not has_news else None

    async def keep(self, manifest: Manifest, model_file: str, engine: str) -> tuple[Model, Pin]:
        """Make the model a folder in the store and check what it refers to. The pin is the caller's to release."""
        missing = self._store.missing(manifest)
        if missing:
            raise FilesMissing(
                f"{len(missing)} of the model's files are not here yet; upload them, then deploy again",
                files=[entry.path for entry in missing],
            )
        model = await self._store.publish(manifest)
        with _HeldPin(self._store.pin(model.digest)) as held:
            await check_model(model.path, model_file, engine, manifest)
            return model, held.keep()

    async def fetch(self, url: str, progress: Progress) -> Manifest:
        def fetched(done_bytes: int, total_bytes: int | None) -> None:
            progress("fetch", "fetch the model", done_bytes=done_bytes, total_bytes=total_bytes)

        return await self._fetch(url, fetched)

    async def try_and_commit(
        self, request: DeployBody, model: Model, model_file: str, progress: Progress
    ) -> dict[str, Any]:
        """Start the model, have it answer, write the revision and give it the traffic. Return the receipt."""
        spec, registry = request.spec, self._deployments.registry
        with _HeldPin(self._store.pin(model.digest)) as held:
            key = RevisionKey(spec.name, await registry.reserve_number(spec.name))
            threads = spec.threads or 1
            revision = Revision(key, spec, model.digest, str(model.path), model_file, threads, 0, None)
            self._deployments.announce(spec.name)
            try:
                source = _without_secrets(request.model.url or "")
                attempt = _Attempt(revision, model.size_bytes, request.sample, held, progress, source)
                return await self._try(attempt)
            finally:
                self._deployments.withdraw(spec.name)

    async def _try(self, attempt: _Attempt) -> dict[str, Any]:
        """Measure with one thread and, where that could pay, with all cores; commit the better one."""
        async with self._trials.standing(attempt.revision) as keep:
            trial = await self._trials.run(attempt.revision, self._requests(attempt), attempt.progress)
            if trial.body is None and attempt.sample is not None:
                raise SampleFailed(f"the model did not answer the sample: {trial.refusal}")
            if not self._wants_threads(trial):
                return await self._commit(attempt, trial, keep)
        threaded = dataclasses.replace(attempt.revision, threads=self._site.cores)
        async with self._trials.standing(threaded) as keep:
            faster = await self._faster(threaded, trial, attempt.progress)
            if faster is not None:
                return await self._commit(attempt, faster, keep)
        async with self._trials.standing(trial.revision) as keep:
            return await self._commit(attempt, trial, keep)

    def _requests(self, attempt: _Attempt) -> Callable[[Signature], Iterable[Body]]:
        sample = attempt.sample
        if sample is not None:
            return lambda _signature: [given(sample)]
        return lambda signature: (tried.body() for tried in candidates(signature, self._site.body_limit_bytes))

    def _wants_threads(self, trial: Trial) -> bool:
        return (
            trial.revision.spec.threads is None
            and self._site.cores > 1
            and trial.measured is not None
            and trial.measured.warm_p50_ns > THREADS_WORTH_TRYING_NS
        )

    async def _faster(self, threaded: Revision, alone: Trial, progress: Progress) -> Trial | None:
        """Run the threaded candidate on what `alone` answered; return its trial if its cores are worth their price."""
        body, one_thread = alone.body, alone.measured
        assert body is not None
        assert one_thread is not None
        try:
            trial = await self._trials.run(threaded, lambda _signature: [body], progress)
        except ServeError:
            return None  # such as no room for it: it works with one thread, so that is what it gets
        if trial.measured is None or trial.measured.warm_p50_ns * THREADS_WORTH_KEEPING > one_thread.warm_p50_ns:
            return None
        return trial

    async def _commit(self, attempt: _Attempt, trial: Trial, keep: Callable[[], None]) -> dict[str, Any]:
        revision = trial.revision
        endpoint = f"{self._site.endpoint_base}/v2/models/{revision.key.name}/infer"
        body = trial.body or _example(revision)
        curl = "" if body is None else await sample_file.curl(self._site.home, revision.key.name, endpoint, body)
        printed = receipt.receipt(revision, attempt.size_bytes, endpoint, trial.measured, self._site.prices(), curl)
        now_ns = self._site.clock.wall_ns()
        stored = StoredRevision(revision, attempt.size_bytes, printed, now_ns, attempt.source)

        def committed(dropped: list[StoredRevision]) -> None:
            keep()
            self._deployments.activate(stored, attempt.pin.keep(), dropped)

        await self._deployments.registry.add(stored, committed)
        attempt.progress("done", f"{revision.key} takes the traffic")
        return printed


class Publication:
    """One admitted publish. Used by one task, inside `Publisher.admit`."""

    def __init__(self, publisher: Publisher, request: DeployBody) -> None:
        self._publisher = publisher
        self._request = request
        self._model: Model | None = None
        self._pin: Pin | None = None
        """Others may delete or evict the same model meanwhile."""
        self._unchanged: StoredRevision | None = None
        self._model_file = ""

    async def take(self, manifest: Manifest, model_file: str) -> None:
        """Bring the model into the store as a folder, unless it is what runs already."""
        self._model_file = model_file
        await self._publisher.look(manifest.digest)
        self._unchanged = self._publisher.current(self._request, manifest.digest, model_file)
        if self._unchanged is None:
            self._model, self._pin = await self._publisher.keep(manifest, model_file, self._request.spec.engine)

    def let_go(self) -> None:
        """Release the model; what was committed holds it by itself."""
        if self._pin is not None:
            self._pin.release()

    async def run(self, progress: Progress) -> Published:
        """Do what is left. Raise ServeError; then nothing has changed."""
        url = self._request.model.url
        if url is not None:
            manifest = await self._publisher.fetch(url, progress)
            progress("check", "check the model")
            await self.take(manifest, manifest.files[0].path)
        if self._unchanged is not None:
            return Published(self._unchanged.receipt, is_unchanged=True)
        assert self._model is not None
        printed = await self._publisher.try_and_commit(self._request, self._model, self._model_file, progress)
        return Published(printed, is_unchanged=False)


class _HeldPin:
    """A pin that is released at the end of the block unless it was given away."""

    def __init__(self, pin: Pin) -> None:
        self._pin: Pin | None = pin

    def keep(self) -> Pin:
        assert self._pin is not None
        pin, self._pin = self._pin, None
        return pin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._pin is not None:
            self._pin.release()


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What one try at a revision carries along."""

    revision: Revision
    size_bytes: int
    sample: dict[str, Any] | None
    pin: _HeldPin
    progress: Progress
    source: str


def _without_secrets(url: str) -> str:
    """Return a URL that may be written down; empty for one with a password or a query, which may hold a key."""
    parts = urlsplit(url)
    return "" if "@" in parts.netloc or parts.query else url


def _example(revision: Revision) -> Body | None:
    """Return a request to show for a model that answered none: its user fills it in."""
    assert revision.signature is not None
    return next((tried.body() for tried in candidates(revision.signature, 1 << 20)), None)
