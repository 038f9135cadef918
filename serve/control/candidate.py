"""A candidate: a revision on trial. It is started, asked, and measured before anybody can call it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import orjson

from activator.router import ProbeResult
from serve.control.ports import Router, Scaler
from serve.control.receipt import Measured
from serve.control.sample import Body
from serve.core.clock import NS_PER_S, Clock
from serve.core.errors import PublishError, SampleFailed, ServeError
from serve.core.events import Phase
from serve.core.ids import RevisionKey
from serve.core.revision import Revision, Signature

MEASURED_PROBES = 20
MEASURED_NS = NS_PER_S


class Progress(Protocol):
    """Told how a publish goes, on the loop."""

    def __call__(
        self, step: str, message: str, *, done_bytes: int | None = None, total_bytes: int | None = None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Trial:
    """What a candidate turned out to be."""

    revision: Revision
    """With signature and memory as measured."""
    body: Body | None
    """The request that it answered; None where it answered none."""
    measured: Measured | None
    """None where it answered nothing."""
    refusal: str = ""
    """What it said to the last request that it did not answer."""


@dataclass(frozen=True, slots=True)
class _Started:
    revision: Revision
    start_ns: int
    phases: Mapping[Phase, int]


class Trials:
    """Runs candidates. Owned by the event loop."""

    def __init__(self, scaler: Scaler, router: Router, clock: Clock) -> None:
        self._scaler = scaler
        self._router = router
        self._clock = clock
        self._learned_bytes: dict[RevisionKey, int] = {}
        """High-water marks of candidates that stand."""

    def memory_learned(self, key: RevisionKey, size_bytes: int) -> bool:
        """Note a replica's new high-water mark; False where it is no candidate's."""
        if key not in self._learned_bytes:
            return False
        self._learned_bytes[key] = max(self._learned_bytes[key], size_bytes)
        return True

    @asynccontextmanager
    async def standing(self, revision: Revision) -> AsyncIterator[Callable[[], None]]:
        """Make the candidate known to scaler and router; take it away at the end, replicas included.

        Yields the call that keeps it instead: it is a revision like any other now.
        """
        is_kept = False

        def keep() -> None:
            nonlocal is_kept
            is_kept = True

        self._learned_bytes[revision.key] = 0
        self._router.add_revision(revision)
        self._scaler.add(revision, reachable=False)
        try:
            yield keep
        finally:
            del self._learned_bytes[revision.key]
            if not is_kept:
                try:
                    await self._scaler.remove(revision.key)
                finally:
                    self._router.remove_revision(revision.key)

    async def run(
        self, revision: Revision, requests: Callable[[Signature], Iterable[Body]], progress: Progress
    ) -> Trial:
        """Start a replica of a standing candidate, give it `requests` until one is answered, and measure that one.

        Raise PublishError where it cannot be started, or dies or hangs over a request.
        """
        progress("start", f"start {revision.key} ({_threads(revision.threads)})")
        started = await self._start(revision)
        progress("infer", "run one real inference")
        assert started.revision.signature is not None
        refusal = "there was nothing to ask"
        for body in requests(started.revision.signature):
            answer = await self._ask(revision, body)
            if answer.status == 200:
                progress("measure", f"measure warm latency ({_threads(revision.threads)})")
                measured = await self._measure(started, body, answer)
                return Trial(self._with_memory(started.revision), body, measured)
            refusal = _reason(answer)
        return Trial(self._with_memory(started.revision), None, None, refusal)

    async def _start(self, revision: Revision) -> _Started:
        warmed = await self._scaler.warm(revision.key)
        ready = warmed.ready
        signature = Signature(ready.platform, ready.inputs, ready.outputs, ready.batchable)
        known = dataclasses.replace(revision, signature=signature, memory_bytes=ready.peak_memory_bytes)
        self._router.add_revision(known)
        self._scaler.replace(known)
        return _Started(known, warmed.total_ns, warmed.phases_ns)

    async def _ask(self, revision: Revision, body: Body) -> ProbeResult:
        try:
            return await self._router.probe(revision.key, body.data, body.json_length)
        except PublishError:
            raise
        except ServeError as error:
            raise SampleFailed(
                f"the model gave no answer to a sample: {error}; see `serve logs {revision.key.name}`, or give a valid "
                "request with --sample FILE"
            ) from error

    async def _measure(self, started: _Started, body: Body, first: ProbeResult) -> Measured:
        warm_ns: list[int] = []
        began_ns = self._clock.monotonic_ns()
        while not warm_ns or (len(warm_ns) < MEASURED_PROBES and self._clock.monotonic_ns() - began_ns < MEASURED_NS):
            answer = await self._ask(started.revision, body)
            if answer.status != 200:
                raise SampleFailed(f"the model answered a sample once, but not again: {_reason(answer)}")
            warm_ns.append(answer.total_ns)
        return Measured(
            started.start_ns + first.total_ns, {**started.phases, Phase.INFER: first.total_ns}, tuple(warm_ns)
        )

    def _with_memory(self, revision: Revision) -> Revision:
        """Inferences take memory too: the replica has said since how much."""
        learned_bytes = self._learned_bytes.get(revision.key, 0)
        return dataclasses.replace(revision, memory_bytes=max(revision.memory_bytes, learned_bytes))


def _reason(answer: ProbeResult) -> str:
    try:
        return str(orjson.loads(answer.body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"it answered status {answer.status}"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
