"""What `/api/v1` answers, as JSON schemas: part of the OpenAPI document, and what stand-ins in tests are held to.

Objects may have further keys: a newer platform says more, and clients ignore what they do not know.
"""

from __future__ import annotations

from typing import Any

from serve.core.revision import State

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": "number"}
_FLAG: Schema = {"type": "boolean"}
_TIME: Schema = {"type": "string", "description": "ISO 8601, UTC."}
_DIGEST: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_STATE: Schema = {"enum": [state.value for state in State]}
_TEXT_BY_KEY: Schema = {"type": "object", "additionalProperties": _TEXT}
_ANYTHING: Schema = {"type": "object"}


def _object(**properties: Schema) -> Schema:
    """Return an object that has all these keys."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _also(schema: Schema, **properties: Schema) -> Schema:
    """Return the object with keys that it need not have."""
    return schema | {"properties": schema["properties"] | properties}


_TENSOR = _object(name=_TEXT, datatype=_TEXT, shape=_list(_WHOLE))
_PHASES: Schema = {"type": "object", "additionalProperties": _or_null(_NUMBER), "description": "Milliseconds by phase."}
RECEIPT = _also(
    _object(
        name=_TEXT,
        revision=_COUNT,
        endpoint=_TEXT,
        verified=_FLAG,
        cold_start=_or_null(_object(total_ms=_NUMBER, phases=_PHASES)),
        warm_ms=_or_null(_object(p50=_NUMBER, n=_COUNT)),
        memory_bytes=_COUNT,
        threads=_COUNT,
        concurrency=_COUNT,
        max_batch=_COUNT,
        cost=_object(currency=_TEXT, per_1000_calls=_or_null(_TEXT), per_idle_hour=_TEXT, at_zero=_or_null(_TEXT)),
        curl=_TEXT,
        inputs=_list(_TENSOR),
        outputs=_list(_TENSOR),
        idle_s=_NUMBER,
        model=_object(digest=_DIGEST, size_bytes=_COUNT),
    ),
    warning=_TEXT,
)
EVENT: Schema = {
    "description": "One line of the answer to a deploy.",
    "anyOf": [
        _also(
            _object(event={"const": "progress"}, step=_TEXT, message=_TEXT),
            done_bytes=_COUNT,
            total_bytes=_COUNT,
        ),
        _object(event={"const": "deployed"}, unchanged=_FLAG, receipt=RECEIPT),
        _object(event={"const": "failed"}, error=_TEXT, code=_TEXT),
    ],
}
LOG_LINE = _also(_object(replica=_TEXT, line=_TEXT), time=_TEXT)

_LISTED = _object(
    name=_TEXT, state=_STATE, revision=_COUNT, replicas=_COUNT, idle_s=_NUMBER, labels=_TEXT_BY_KEY, created_at=_TIME
)
_REPLICA = _object(id=_TEXT, pid=_or_null(_COUNT), revision=_COUNT, state=_TEXT, in_flight=_COUNT, memory_bytes=_COUNT)
_STATUS = _also(
    _object(
        name=_TEXT,
        state=_STATE,
        traffic=_list(_object(revision=_COUNT, weight=_COUNT)),
        replicas=_list(_REPLICA),
        queue=_object(count=_COUNT, bytes=_COUNT),
        cold_start_ms=_object(p50=_or_null(_NUMBER), p95=_or_null(_NUMBER), phases=_PHASES),
        created_at=_TIME,
        spec=_ANYTHING,
    ),
    failure=_TEXT,
)
_REVISION = _object(
    revision=_COUNT,
    created_at=_TIME,
    digest=_DIGEST,
    current=_FLAG,
    state=_STATE,
    size_bytes=_COUNT,
    verified=_FLAG,
    changes=_list(_TEXT),
)
_DECISION = {
    "type": "object",
    "required": ["time", "revision", "from", "to", "reason"],
    "properties": {"time": _TIME, "revision": _COUNT, "from": _COUNT, "to": _COUNT, "reason": _TEXT},
}
_PARTS = ("cold", "billed", "lost", "idle", "drain")
_ROW = _object(
    group=_or_null(_TEXT),
    **dict.fromkeys(("requests", "charged", "uncharged", "probes", "rows", "cold_starts", "replicas"), _COUNT),
    **{f"{part}_{unit}": _WHOLE for part in _PARTS for unit in ("core_us", "mib_us", "cost_nano")},
    request_cost_nano=_WHOLE,
    cost_nano=_WHOLE,
)
_LINE = _also(_object(line=_TEXT, core_us=_WHOLE, mib_us=_WHOLE), cost_nano=_WHOLE)
_TENURE = _object(
    **dict.fromkeys(("begin_ns", "end_ns", "elapsed_us", "cores", "memory_mib"), _WHOLE), writer=_TEXT, ended=_FLAG
)
_MACHINE = _object(
    lines=_list(_LINE),
    total=_LINE,
    tenures=_list(_TENURE),
    gap_us=_COUNT,
    outside=_object(core_us=_COUNT, mib_us=_COUNT),
)
_BILL = _also(
    _object(
        by=_TEXT,
        since_ns=_or_null(_WHOLE),
        until_ns=_or_null(_WHOLE),
        currency=_TEXT,
        rows=_list(_ROW),
        total=_ROW,
    ),
    machine=_MACHINE,
)
_RECONCILED = _object(
    **dict.fromkeys(("granted_core_us", "charged_mib"), _WHOLE),
    **dict.fromkeys(("kernel_cpu_us", "kernel_own_mib", "kernel_peak_rss_mib"), _or_null(_COUNT)),
    replica=_TEXT,
    state=_TEXT,
    ratio=_or_null(_NUMBER),
    flags=_list(_TEXT),
)
_VERIFICATION = _also(
    _object(ok=_FLAG, lives=_COUNT, requests=_COUNT, problems=_list(_TEXT), notes=_list(_TEXT)),
    maybe_unsent=_list(_TEXT),
    machine=_MACHINE,
    kernel=_object(
        replicas=_list(_RECONCILED),
        total=_object(granted_core_us=_WHOLE, kernel_cpu_us=_COUNT, unknown=_COUNT, flagged=_COUNT),
    ),
)
_REQUEST = _object(
    **dict.fromkeys(("id", "writer", "deployment", "replica", "price"), _TEXT),
    **dict.fromkeys(("wall_ns", "mono_ns", "revision", "status", "rows", "batch_rows", "cores", "memory_mib"), _WHOLE),
    **dict.fromkeys(("queue_us", "cold_us", "busy_us", "infer_us", "bytes_in", "bytes_out"), _COUNT),
    **dict.fromkeys(("charged", "cold"), _FLAG),
    labels=_TEXT_BY_KEY,
    cost_nano=_or_null(_WHOLE),
    charged_nano=_or_null(_WHOLE),
)
_QUANTILES = _object(p50=_or_null(_COUNT), p95=_or_null(_COUNT), p99=_or_null(_COUNT))
_SIMULATED = _object(
    **dict.fromkeys(("requests", "cold_starts", "starts", "replica_us", "per_1000_cost_nano"), _COUNT),
    **dict.fromkeys([f"{part}cost_nano" for part in ("", "busy_", "cold_", "idle_", "request_")], _COUNT),
    refused=_or_null(_COUNT),  # null of what was recorded: nobody knows
    cold_rate=_NUMBER,
    wait_us=_QUANTILES,
)
_FORECAST = _object(
    name=_TEXT,
    revision=_COUNT,
    changes={"type": "object", "description": "By setting: [as it is, what if]."},
    since_ns=_or_null(_WHOLE),
    until_ns=_or_null(_WHOLE),
    span_s=_NUMBER,
    currency=_TEXT,
    recorded=_SIMULATED,
    as_it_was=_SIMULATED,
    what_if=_SIMULATED,
    conclusion=_TEXT,
    weak=_or_null(_TEXT),
    notes=_list(_TEXT),
)
_PLATFORM = _also(
    _object(
        version=_TEXT,
        deployments=_COUNT,
        changing=_TEXT_BY_KEY,
        store=_object(used_bytes=_COUNT, budget_bytes=_COUNT),
    ),
    pid=_COUNT,
    url=_TEXT,
    admin_url=_TEXT,
    home=_TEXT,
)

ANSWERS: dict[str, Schema] = {
    "list_deployments": _object(deployments=_list(_LISTED)),
    "status": _STATUS,
    "delete": _object(name=_TEXT, deleted=_FLAG),
    "history": _object(revisions=_list(_REVISION)),
    "rollback": _object(name=_TEXT, revision=_COUNT),
    "explain": _object(decisions=_list(_DECISION)),
    "what_if": _FORECAST,
    "put_blob": _object(sha256=_DIGEST, size=_COUNT),
    "bill": _BILL,
    "verify_bill": _VERIFICATION,
    "request": _REQUEST,
    "platform": _PLATFORM,
    "schema": _ANYTHING,
    "openapi": _ANYTHING,
}
"""By operation, those that answer with one JSON document."""

LINES: dict[str, Schema] = {"deploy": EVENT, "logs": LOG_LINE}
"""By operation, one line of those that answer with JSON lines."""

PARAMETERS: dict[str, Schema] = {
    "by": {"type": "string", "pattern": "^(deployment|revision|hour|day|label:[A-Za-z0-9._/-]+)$"},
    "since": {"type": "string", "format": "date-time", "description": "Or seconds since 1970."},
    "until": {"type": "string", "format": "date-time", "description": "Or seconds since 1970."},
    "changes": {"type": "string", "pattern": "^[a-z_-]+=[^,]+(,[a-z_-]+=[^,]+)*$", "description": "As idle=10s,max=4."},
    "wait": {"type": "number", "exclusiveMinimum": 0, "description": "Seconds."},
    "tail": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
    "follow": {"enum": ["0", "1"]},
    "kernel": {"enum": ["0", "1"]},
    "request_id": _TEXT,
    "sha256": _DIGEST,
    "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"},
}
"""Of paths and queries, by name."""
