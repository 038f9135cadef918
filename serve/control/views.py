"""Deployments as the API shows them. Reads memory only; wakes nothing."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from serve.control.deployments import Deployments
from serve.control.registry import Deployment, StoredRevision
from serve.core.clock import NS_PER_S
from serve.core.errors import Publishing, UnknownModel
from serve.core.ids import RevisionKey
from serve.core.revision import State

_SHOWN_STATE = {"ordered": "starting", "retiring": "draining"}
"""States inside the autoscaler that people need not tell apart."""
_HAS_REQUESTS = frozenset({"ready", "retiring"})


def find(deployments: Deployments, name: str) -> Deployment:
    """Return the deployment. Raise UnknownModel, or Publishing while its first revision is tried."""
    try:
        return deployments.registry.get(name)
    except UnknownModel:
        if name in deployments.claims:
            raise Publishing(f"'{name}' is being published and has not answered yet", retry_after_s=1.0) from None
        raise


def listing(deployments: Deployments) -> dict[str, Any]:
    return {"deployments": [_line(deployments, item) for _, item in sorted(deployments.registry.deployments.items())]}


def status(deployments: Deployments, deployment: Deployment) -> dict[str, Any]:
    """Return DESIGN §9's status, with the spec and, where it failed, why."""
    current = deployment.current
    key = current.revision.key
    queues = [deployments.router.queue_status(stored.revision.key) for stored in deployment.revisions.values()]
    answer: dict[str, Any] = {
        "name": deployment.name,
        "state": _state(deployments, current),
        "traffic": [{"revision": number, "weight": weight} for number, weight in deployment.weights],
        "replicas": _replicas(deployments, deployment),
        "queue": {"count": sum(queue[0] for queue in queues), "bytes": sum(queue[1] for queue in queues)},
        "cold_start_ms": _cold_start(deployments, key),
        "created_at": timestamp(deployment.created_wall_ns),
        "spec": current.revision.spec.model_dump(mode="json"),
    }
    failure = deployments.scaler.failure_of(key)
    return answer if failure is None else answer | {"failure": failure}


def history(deployments: Deployments, deployment: Deployment) -> dict[str, Any]:
    """Return the retained revisions, newest first, each with what changed since the one before."""
    revisions = list(deployment.revisions.values())
    changes = [[], *(_changes(before, after) for before, after in pairwise(revisions))]
    serving = {number for number, _ in deployment.weights}
    lines = [
        {
            "revision": stored.number,
            "created_at": timestamp(stored.created_wall_ns),
            "digest": stored.revision.digest,
            "current": stored.number in serving,
            "state": _state(deployments, stored),
            "size_bytes": stored.size_bytes,
            "verified": stored.receipt["verified"],
            "changes": changed,
        }
        for stored, changed in zip(revisions, changes, strict=True)
    ]
    return {"revisions": lines[::-1]}


def decisions(deployments: Deployments, name: str) -> dict[str, Any]:
    """Return why replicas came and went, oldest first."""
    lines = [
        {
            "time": timestamp(decision.wall_ns),
            "revision": decision.key.number,
            "from": decision.replicas_before,
            "to": decision.replicas_after,
            "reason": decision.reason,
        }
        for decision in deployments.scaler.decisions(name)
    ]
    return {"decisions": lines}


def count_states(deployments: Deployments) -> Counter[State]:
    """Return how many deployments are in each state."""
    return Counter(_state(deployments, item.current) for item in deployments.registry.deployments.values())


def timestamp(wall_ns: int) -> str:
    """Return a wall time as people and programs read it: ISO 8601, UTC, milliseconds."""
    return datetime.fromtimestamp(wall_ns / NS_PER_S, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _line(deployments: Deployments, deployment: Deployment) -> dict[str, Any]:
    current = deployment.current
    return {
        "name": deployment.name,
        "state": _state(deployments, current),
        "revision": current.number,
        "replicas": len(_replicas(deployments, deployment)),
        "idle_s": current.revision.spec.idle,
        "labels": current.revision.spec.labels,
        "created_at": timestamp(deployment.created_wall_ns),
    }


def _state(deployments: Deployments, stored: StoredRevision) -> State:
    key = stored.revision.key
    return deployments.scaler.state_of(key) if deployments.is_servable(key) else State.FAILED


def _replicas(deployments: Deployments, deployment: Deployment) -> list[dict[str, Any]]:
    return [
        {
            "id": replica.id,
            "pid": replica.pid,
            "revision": number,
            "state": _SHOWN_STATE.get(replica.state, str(replica.state)),
            "in_flight": deployments.router.replica_in_flight(replica.id) if replica.state in _HAS_REQUESTS else 0,
            "memory_bytes": replica.memory_bytes,
        }
        for number in deployment.revisions
        for replica in deployments.scaler.describe(RevisionKey(deployment.name, number))
    ]


def _cold_start(deployments: Deployments, key: RevisionKey) -> dict[str, Any]:
    if not deployments.is_servable(key):
        return {"p50": None, "p95": None, "phases": {}}
    starts = deployments.scaler.cold_start_history(key)
    phases = {phase.value: quantiles.get("p50") for phase, quantiles in starts.phases_ms.items()}
    return {"p50": starts.total_ms.get("p50"), "p95": starts.total_ms.get("p95"), "phases": phases}


def _changes(before: StoredRevision, after: StoredRevision) -> list[str]:
    old, new = before.revision.spec.model_dump(mode="json"), after.revision.spec.model_dump(mode="json")
    changes = [f"{key}: {_text(old.get(key))} → {_text(value)}" for key, value in new.items() if old.get(key) != value]
    if before.revision.digest != after.revision.digest:
        changes.append(f"model: {before.revision.digest[:12]} → {after.revision.digest[:12]}")
    elif before.revision.model_file != after.revision.model_file:
        changes.append(f"model file: {before.revision.model_file} → {after.revision.model_file}")
    if before.revision.threads != after.revision.threads and old["threads"] == new["threads"]:
        changes.append(f"measured threads: {before.revision.threads} → {after.revision.threads}")
    return changes


def _text(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
