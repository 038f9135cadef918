"""A replica started for publishing: what it reports, and what its failure means to the person who deploys."""

from __future__ import annotations

from dataclasses import dataclass

from autoscaler.replica import Replica
from serve.core.errors import PublishError, load_failure
from serve.core.events import Failed, Phase, Ready
from serve.core.ids import ReplicaId

NO_MEMORY = "out_of_memory"
"""`Failed.code` of a replica in which loading ran out of memory."""


@dataclass(frozen=True, slots=True)
class WarmReport:
    """A replica that publishing holds."""

    replica_id: ReplicaId
    pid: int
    ready: Ready
    phases_ns: dict[Phase, int]
    """Duration of each phase of its start."""
    total_ns: int
    """Ordered to ready."""

    @classmethod
    def of(cls, replica: Replica) -> WarmReport:
        """Return the report of a replica that is ready."""
        assert replica.ready is not None
        assert replica.pid is not None
        total_ns = replica.ready_ns - replica.ordered_ns
        return cls(replica.id, replica.pid, replica.ready, replica.phases_ns(), total_ns)


def publish_error(failed: Failed | None, message: str) -> PublishError:
    """Return the error for a replica that did not become ready: by its own account, else by how it ended."""
    if failed is None:
        return PublishError(message)
    return load_failure(failed.code, failed.message)
