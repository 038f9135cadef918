"""Small stand-ins for the autoscaler, the activator and the ledger. The store and the registry are the real ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from activator.router import ProbeResult
from autoscaler.history import ColdStartHistory, ColdStartSummary, DecisionRecord
from autoscaler.replica import ReplicaState, ReplicaStatus
from autoscaler.warm import WarmReport
from serve.core.errors import ServeError
from serve.core.events import Phase, Ready, TensorSpec
from serve.core.frames import NO_JSON_LENGTH
from serve.core.ids import ReplicaId, RevisionKey
from serve.core.revision import Revision, Route, State
from serve.core.spec import DeploymentSpec

MS = 1_000_000


def ready(*, batchable: bool = True, shape: tuple[int, ...] = (-1, 4), datatype: str = "FP32") -> Ready:
    return Ready(
        at_ns=0,
        platform="onnxruntime_onnx",
        engine_version="1",
        inputs=(TensorSpec("x", datatype, shape),),
        outputs=(TensorSpec("y", "FP32", (-1, 2)),),
        batchable=batchable,
        memory_bytes=20 << 20,
        peak_memory_bytes=30 << 20,
    )


@dataclass
class FakeScaler:
    """One replica per warmed revision. `refuse` is raised by `warm`; `gate` holds `warm` until it is set."""

    ready: Ready = field(default_factory=ready)
    refuse: ServeError | None = None
    gate: asyncio.Event | None = None
    known: dict[RevisionKey, Revision] = field(default_factory=dict)
    reachable: dict[RevisionKey, bool] = field(default_factory=dict)
    start_s: dict[RevisionKey, float | None] = field(default_factory=dict)
    held: set[RevisionKey] = field(default_factory=set)
    warmed: list[RevisionKey] = field(default_factory=list)
    removed: list[RevisionKey] = field(default_factory=list)
    replicas: dict[RevisionKey, ReplicaStatus] = field(default_factory=dict)
    records: list[DecisionRecord] = field(default_factory=list)
    learns: Callable[[RevisionKey], None] = lambda _key: None

    def add(self, revision: Revision, *, reachable: bool, start_s: float | None = None) -> None:
        self.start_s[revision.key] = start_s
        assert revision.key not in self.known
        self.known[revision.key] = revision
        self.reachable[revision.key] = reachable

    def replace(self, revision: Revision) -> None:
        assert revision.key in self.known
        self.known[revision.key] = revision

    def set_reachable(self, key: RevisionKey, reachable: bool, /) -> None:
        assert key in self.known
        self.reachable[key] = reachable

    async def remove(self, key: RevisionKey) -> None:
        await asyncio.sleep(0)
        self.removed.append(key)
        self.known.pop(key, None)
        self.replicas.pop(key, None)
        self.held.discard(key)

    async def warm(self, key: RevisionKey) -> WarmReport:
        if self.gate is not None:
            await self.gate.wait()
        if self.refuse is not None:
            raise self.refuse
        self.held.add(key)
        self.warmed.append(key)
        replica = ReplicaId(f"{key}-aaaaaaaa")
        self.replicas[key] = ReplicaStatus(replica, 4711, ReplicaState.READY, 0, 30 << 20)
        self.learns(key)
        return WarmReport(replica, 4711, self.ready, {Phase.SPAWN: 2 * MS, Phase.LOAD: 5 * MS}, 8 * MS)

    def release(self, key: RevisionKey) -> None:
        self.held.discard(key)

    def state_of(self, key: RevisionKey) -> State:
        return State.READY if key in self.replicas else State.COLD

    def failure_of(self, key: RevisionKey) -> str | None:
        return None

    def describe(self, key: RevisionKey) -> list[ReplicaStatus]:
        return [self.replicas[key]] if key in self.replicas else []

    def cold_start_history(self, key: RevisionKey) -> ColdStartSummary:
        starts = ColdStartHistory()
        if key in self.warmed:
            starts.add(8 * MS, {Phase.SPAWN: 2 * MS})
        return starts.summary()

    def decisions(self, name: str) -> list[DecisionRecord]:
        return [record for record in self.records if record.key.name == name]


@dataclass
class FakeRouter:
    """Answers probes with `answer(revision, request)`."""

    revisions: dict[RevisionKey, Revision] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    states: list[tuple[str, State]] = field(default_factory=list)
    probes: list[dict[str, Any]] = field(default_factory=list)
    answer: Callable[[Revision, dict[str, Any]], ProbeResult] = lambda _revision, _request: fine()
    loses: ServeError | None = None
    failed_pending: list[RevisionKey] = field(default_factory=list)
    retired: list[RevisionKey] = field(default_factory=list)

    def add_revision(self, revision: Revision) -> None:
        self.revisions[revision.key] = revision

    def retire_revision(self, key: RevisionKey) -> None:
        assert key in self.revisions
        self.retired.append(key)

    def remove_revision(self, key: RevisionKey) -> None:
        self.revisions.pop(key, None)

    def fail_pending(self, key: RevisionKey, error: ServeError) -> None:
        self.failed_pending.append(key)

    def route(self, route: Route) -> None:
        self.routes[route.name] = route
        self.states.append((route.name, route.state))

    def unroute(self, name: str) -> None:
        self.routes.pop(name, None)

    async def probe(self, key: RevisionKey, body: bytes, json_length: int) -> ProbeResult:
        await asyncio.sleep(0)
        if self.loses is not None:
            raise self.loses
        request = json.loads(body if json_length == NO_JSON_LENGTH else body[:json_length])
        self.probes.append(request)
        return self.answer(self.revisions[key], request)

    def queue_status(self, key: RevisionKey) -> tuple[int, int, int]:
        return (1, 100, 0) if key in self.revisions else (0, 0, 0)

    def replica_in_flight(self, replica_id: ReplicaId) -> int:
        return 2


def fine(total_ns: int = MS) -> ProbeResult:
    return ProbeResult(200, b"{}", total_ns)


def refused(sentence: str = "shape does not match") -> ProbeResult:
    return ProbeResult(400, orjson.dumps({"error": sentence, "code": "bad_request"}), MS)


class FakeBooks:
    async def bill(self, by: str, since_ns: int | None, until_ns: int | None) -> dict[str, Any]:
        return {"by": by, "since_ns": since_ns, "until_ns": until_ns}

    async def bill_csv(self, by: str, since_ns: int | None, until_ns: int | None) -> str:
        return "currency,group\n"

    async def verify(self, *, kernel: bool = False) -> dict[str, Any]:
        return {"ok": True}

    async def request(self, request_id: str) -> dict[str, Any] | None:
        return {"id": request_id} if request_id == "abcdefgh-1" else None


class FakeForecaster:
    """Notes what it is asked; has no answer but the figures of nothing."""

    def __init__(self) -> None:
        self.asked: list[tuple[RevisionKey, dict[str, Any], int | None, int | None]] = []
        """(revision, the settings that were changed, since, until)."""

    async def forecast(
        self, revision: Revision, changed: DeploymentSpec, since_ns: int | None, until_ns: int | None
    ) -> dict[str, Any]:
        now = revision.spec.model_dump()
        changes = {key: value for key, value in changed.model_dump().items() if now[key] != value}
        self.asked.append((revision.key, changes, since_ns, until_ns))
        return FORECAST


_FIGURES: dict[str, Any] = dict.fromkeys(("requests", "refused", "cold_starts", "starts", "replica_us"), 0)
_FIGURES |= dict.fromkeys([f"{part}cost_nano" for part in ("", "busy_", "cold_", "idle_", "request_", "per_1000_")], 0)
_FIGURES |= {"cold_rate": 0.0, "wait_us": {"p50": None, "p95": None, "p99": None}}
FORECAST: dict[str, Any] = {
    "name": "digits",
    "revision": 1,
    "changes": {},
    "since_ns": None,
    "until_ns": None,
    "span_s": 1.0,
    "currency": "USD",
    "recorded": _FIGURES,
    "as_it_was": _FIGURES,
    "what_if": _FIGURES,
    "conclusion": "It would have cost the same.",
    "weak": None,
    "notes": [],
}
