"""What the gate itself tells callers: each sentence names the remedy."""

from __future__ import annotations

from serve.core.clock import NS_PER_S
from serve.core.errors import ExecutionTimeout, QueueFull, QueueTimeout, ReplicaLost, UnknownVersion, UploadTimeout
from serve.core.ids import RevisionKey


def queue_full(key: RevisionKey, waiting: int, retry_after_s: float) -> QueueFull:
    return QueueFull(
        f"Exceeds maximum queue size: {waiting} requests wait for '{key.name}'; retry later or raise the deployment's "
        "queue",
        retry_after_s=retry_after_s,
    )


def queue_timeout(key: RevisionKey, retry_after_s: float) -> QueueTimeout:
    return QueueTimeout(
        f"Request timeout expired while it waited for a replica of '{key.name}'; retry later",
        retry_after_s=retry_after_s,
    )


def upload_timeout(timeout_ns: int) -> UploadTimeout:
    return UploadTimeout(
        f"The body was not there after {timeout_ns / NS_PER_S:g} s: send it faster, or raise the deployment's timeout"
    )


def execution_timeout(key: RevisionKey, inside_ns: int) -> ExecutionTimeout:
    return ExecutionTimeout(
        f"'{key.name}' had not answered after {inside_ns / NS_PER_S:.1f} s inside a replica; raise execution_timeout "
        "or timeout, or send less"
    )


def replica_lost(key: RevisionKey, how: str) -> ReplicaLost:
    return ReplicaLost(f"The replica died while it ran this request ({how}); see `serve logs {key.name}`")


def no_second_try(key: RevisionKey) -> ReplicaLost:
    return ReplicaLost(
        f"The replica died while it ran this request, and no other was free to run it again before its deadline; see "
        f"`serve logs {key.name}`"
    )


def removed(key: RevisionKey) -> UnknownVersion:
    return UnknownVersion(f"'{key.name}' version {key.number} was removed")
