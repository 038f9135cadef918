"""A small platform that keeps the control API's contract, for tests of the command. No model ever runs in it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

TOKEN = "s3cret"
WEIGHTS_MARK = b"external data: "
"""A model that begins so is followed by the paths of its external data, comma-separated."""

THREE = {
    "model_name": "digits",
    "outputs": [
        {"name": "label", "datatype": "INT64", "shape": [1], "data": [3]},
        {"name": "probabilities", "datatype": "FP32", "shape": [1, 3], "data": [0.25, 0.0625, 0.6875]},
    ],
}


@dataclass
class FakePlatform:
    """What the fake knows and what it was asked. Owned by its server; tests read it between calls."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    deployments: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """(method, path, query) of every call."""
    deploys: list[dict[str, Any]] = field(default_factory=list)
    infers: list[bytes] = field(default_factory=list)
    bill_ok: bool = True
    bill: dict[str, Any] = field(default_factory=lambda: BILL)
    proof_takes_s: float = 0.0
    verification: dict[str, Any] = field(default_factory=dict)
    """Further keys of what `verify` answers."""

    def paths(self, method: str) -> list[str]:
        return [path for known, path, _ in self.calls if known == method]


def app(state: FakePlatform) -> Starlette:
    async def deploy(request: Request) -> Response:
        document = await request.json()
        state.deploys.append(document)
        missing = _missing(state, document["model"])
        if missing:
            return _error(422, "files_missing", "files are missing", files=missing)
        return StreamingResponse(_events(state, document), media_type="application/x-ndjson")

    async def put_blob(request: Request) -> Response:
        body, digest = await request.body(), request.path_params["digest"]
        if hashlib.sha256(body).hexdigest() != digest:
            return _error(422, "source_changed", "the bytes are not those announced: deploy again")
        state.blobs[digest] = body
        return JSONResponse({"sha256": digest, "size": len(body)}, 201)

    async def listing(_: Request) -> Response:
        return JSONResponse({"deployments": list(state.deployments.values())})

    async def one(request: Request) -> Response:
        name = request.path_params["name"]
        if request.method == "DELETE":
            del state.deployments[name]
            return JSONResponse({"name": name, "deleted": True})
        return JSONResponse(_status(name))

    async def history(_: Request) -> Response:
        return JSONResponse({"revisions": HISTORY})

    async def rollback(request: Request) -> Response:
        revision = (await request.json())["revision"] or 1
        return JSONResponse({"name": request.path_params["name"], "revision": revision})

    async def explain(_: Request) -> Response:
        return JSONResponse({"decisions": DECISIONS})

    async def what_if(_: Request) -> Response:
        return JSONResponse(FORECAST)

    async def logs(request: Request) -> Response:
        wanted = request.query_params.get("request_id")
        lines = [line for line in LOGS if wanted is None or wanted in line["line"]]
        follow = "follow" in request.query_params
        return StreamingResponse(_log_lines(lines, follow), media_type="application/x-ndjson")

    async def bill(_: Request) -> Response:
        return JSONResponse(state.bill)

    async def bill_csv(_: Request) -> Response:
        return PlainTextResponse("currency,group,cost_nano\nUSD,digits,1500\n")

    async def verify(_: Request) -> Response:
        await asyncio.sleep(state.proof_takes_s)
        problems = [] if state.bill_ok else ["digits-r1-aaaa: a part of its life is negative"]
        return JSONResponse(
            {"ok": state.bill_ok, "lives": 1, "requests": 5, "problems": problems, "notes": ["one torn tail"]}
            | state.verification
        )

    async def infer(request: Request) -> Response:
        state.infers.append(await request.body())
        if request.path_params["name"] == "waits":
            return _error(503, "queue_timeout", "no replica became free in time: try again")
        if request.path_params["name"] == "stalls":
            await asyncio.sleep(30)
        headers = {
            "x-serve-request-id": "w-1",
            "x-serve-revision": "1",
            "x-serve-cold-start": "1",
            "x-serve-cost": "0.000000123 USD",
            "server-timing": "queue;dur=0.5, spawn;dur=1.5, infer;dur=2.0",
        }
        return JSONResponse(THREE, headers=headers)

    async def health(_: Request) -> Response:
        return JSONResponse({"ready": True})

    name, infer_path = "/api/v1/deployments/{name}", "/v2/models/{name}/infer"
    routes = [
        Route("/api/v1/deployments", deploy, methods=["POST"]),
        Route("/api/v1/deployments", listing),
        Route("/api/v1/blobs/{digest}", put_blob, methods=["PUT"]),
        Route(name, one, methods=["GET", "DELETE"]),
        Route(name + "/history", history),
        Route(name + "/rollback", rollback, methods=["POST"]),
        Route(name + "/explain", explain),
        Route(name + "/what-if", what_if),
        Route(name + "/logs", logs),
        Route("/api/v1/bill", bill),
        Route("/api/v1/bill.csv", bill_csv),
        Route("/api/v1/bill/verify", verify),
        Route(infer_path, infer, methods=["POST"]),
        Route("/v2/models/{name}/versions/{version}/infer", infer, methods=["POST"]),
        Route("/v2/health/ready", health),
    ]
    inner = Starlette(routes=routes)

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            state.calls.append((request.method, request.url.path, dict(request.query_params)))
            refusal = _refusal(state, request)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await inner(scope, receive, send)

    return guarded  # type: ignore[return-value]


def _refusal(state: FakePlatform, request: Request) -> Response | None:
    path = request.url.path
    if path.startswith("/api/") and request.headers.get("authorization") != f"Bearer {TOKEN}":
        return _error(401, "unauthorized", "the token is missing or wrong: set SERVE_TOKEN")
    parts = path.split("/")
    if path.startswith("/api/v1/deployments/") and parts[4] not in state.deployments:
        return _error(404, "unknown_model", f"no deployment is named '{parts[4]}'; `serve ls` lists them")
    return None


def _missing(state: FakePlatform, model: dict[str, Any]) -> list[str]:
    if "url" in model:
        return []
    files = {file["path"]: file["sha256"] for file in model["files"]}
    missing = [path for path, digest in files.items() if digest not in state.blobs]
    if missing:
        return missing
    content = state.blobs[files[model["file"]]]
    if not content.startswith(WEIGHTS_MARK):
        return []
    needed = content.removeprefix(WEIGHTS_MARK).decode().split(",")
    return [path for path in needed if path not in files]


async def _events(state: FakePlatform, document: dict[str, Any]) -> AsyncIterator[bytes]:
    name = document["spec"]["name"]
    for step in ("check", "start", "infer"):
        yield json.dumps({"event": "progress", "step": step, "message": f"{step} {name}"}).encode() + b"\n"
    if name == "stalls":
        await asyncio.sleep(30)
    if name == "refused":
        yield json.dumps({"event": "failed", "error": "x is no setting of onnx", "code": "invalid_spec"}).encode()
        return
    if name == "broken":
        yield json.dumps({"event": "failed", "error": "not an ONNX file: export it", "code": "model_invalid"}).encode()
        return
    if name == "cut":
        return
    unchanged = name in state.deployments
    state.deployments[name] = DEPLOYMENT | {"name": name}
    receipt = RECEIPT | {"name": name, "endpoint": f"http://127.0.0.1/v2/models/{name}/infer"}
    if name == "unverified":
        receipt |= {"verified": False, "warning": "no sample ran: give one with --sample", "warm_ms": None, "curl": ""}
    yield json.dumps({"event": "deployed", "unchanged": unchanged, "receipt": receipt}).encode() + b"\n"


async def _log_lines(lines: list[dict[str, Any]], follow: bool) -> AsyncIterator[bytes]:
    for line in lines:
        yield json.dumps(line).encode() + b"\n"
    if follow:
        yield json.dumps({"replica": "digits-r1-aaaa", "line": "a later line"}).encode() + b"\n"


def _error(status: int, code: str, sentence: str, **details: Any) -> Response:
    return JSONResponse({"error": sentence, "code": code} | details, status)


def _status(name: str) -> dict[str, Any]:
    replica = {
        "id": f"{name}-r1-aaaa",
        "pid": 42,
        "revision": 1,
        "state": "ready",
        "in_flight": 0,
        "memory_bytes": 1 << 25,
    }
    return {
        "name": name,
        "state": "ready",
        "traffic": [{"revision": 1, "weight": 1}],
        "replicas": [replica],
        "queue": {"count": 0, "bytes": 0},
        "cold_start_ms": {"p50": 31.5, "p95": 40.0, "phases": {"spawn": 7.0, "load": 20.0}},
        "created_at": "2026-11-01T10:00:00Z",
        "spec": {"name": name},
    }


DEPLOYMENT = {
    "name": "digits",
    "state": "cold",
    "revision": 1,
    "replicas": 0,
    "idle_s": 60.0,
    "labels": {"team": "vision"},
    "created_at": "2026-11-01T10:00:00Z",
    "last_request_at": None,
}
RECEIPT: dict[str, Any] = {
    "name": "digits",
    "revision": 1,
    "endpoint": "http://127.0.0.1/v2/models/digits/infer",
    "verified": True,
    "cold_start": {"total_ms": 31.25, "phases": {"queue": 0.5, "spawn": 7.0, "load": 20.0, "infer": 3.75}},
    "warm_ms": {"p50": 0.42, "n": 20},
    "memory_bytes": 40 << 20,
    "threads": 1,
    "concurrency": 64,
    "max_batch": 32,
    "cost": {"currency": "USD", "per_1000_calls": "0.000012", "per_idle_hour": "0.000352", "at_zero": "0"},
    "curl": "curl -s http://127.0.0.1/v2/models/digits/infer -d '{\"inputs\": []}'",
    "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, 64]}],
    "outputs": [{"name": "label", "datatype": "INT64", "shape": [-1]}],
    "idle_s": 60.0,
    "model": {"digest": "ab" * 32, "size_bytes": 3},
}
HISTORY = [
    {
        "revision": 2,
        "created_at": "2026-11-02T10:00:00Z",
        "digest": "cd" * 32,
        "current": True,
        "state": "cold",
        "size_bytes": 2048,
        "verified": True,
        "changes": ["idle 60 → 30"],
    },
    {
        "revision": 1,
        "created_at": "2026-11-01T10:00:00Z",
        "digest": "ab" * 32,
        "current": False,
        "state": "cold",
        "size_bytes": 1024,
        "verified": True,
        "changes": [],
    },
]
DECISIONS = [
    {
        "time": "2026-11-01T10:00:00Z",
        "revision": 7,
        "from": 0,
        "to": 1,
        "reason": "1 request waits and no replica runs",
    }
]
_RECORDED: dict[str, Any] = {
    "requests": 120,
    "refused": 0,
    "cold_starts": 3,
    "cold_rate": 0.025,
    "wait_us": {"p50": 250, "p95": 1500, "p99": 31_200},
    "starts": 4,
    "replica_us": 241_300_000,
    "cost_nano": 61_000,
    "busy_cost_nano": 40_000,
    "cold_cost_nano": 6_000,
    "idle_cost_nano": 15_000,
    "request_cost_nano": 0,
    "per_1000_cost_nano": 508_333,
}
FORECAST: dict[str, Any] = {
    "name": "digits",
    "revision": 2,
    "changes": {"idle": [60.0, 10.0], "max": [None, 4]},
    "since_ns": None,
    "until_ns": None,
    "span_s": 400_000.0,
    "currency": "USD",
    "recorded": _RECORDED | {"refused": None},
    "as_it_was": _RECORDED | {"wait_us": dict.fromkeys(("p50", "p95", "p99"))},
    "what_if": _RECORDED | {"refused": 1, "cost_nano": 37_820},
    "conclusion": "It would have cost 38 % less; 4 of 120 callers would have waited 60 ms longer.",
    "weak": "The forecast is weak: 40 starts instead of 4.",
    "notes": ["Nothing goes wrong in it."],
}
LOGS: list[dict[str, Any]] = [
    {"time": "2026-11-01T10:00:00Z", "replica": "digits-r1-aaaa", "line": "loaded"},
    {"replica": "digits-r1-aaaa", "line": "request w-7 took long"},
]
_PARTS = ("cold", "billed", "lost", "idle", "drain", "request")
_ROW = {"requests": 5, "charged": 5, "uncharged": 0, "probes": 0, "rows": 5, "cold_starts": 1, "replicas": 1}
_ROW |= {f"{part}_{unit}": 9 for part in _PARTS[:-1] for unit in ("core_us", "mib_us")}
_ROW |= {f"{part}_cost_nano": 250 for part in _PARTS}
BILL: dict[str, Any] = {
    "by": "deployment",
    "since_ns": None,
    "until_ns": None,
    "currency": "USD",
    "rows": [{"group": "digits", **_ROW, "cost_nano": 1500}],
    "total": {"group": None, **_ROW, "cost_nano": 1500},
}
