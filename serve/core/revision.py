"""`Revision`: the immutable snapshot that the registry keeps, the activator routes to and the autoscaler scales."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from serve.core.events import LoadOrder, TensorSpec, tensor_specs
from serve.core.ids import ReplicaId, RevisionKey
from serve.core.spec import DeploymentSpec


class State(StrEnum):
    """State of a revision as callers see it. A cold revision is servable: `/ready` says 200."""

    PUBLISHING = "publishing"
    COLD = "cold"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives, learned from its first replica."""

    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batchable: bool

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Signature:
        return cls(data["platform"], tensor_specs(data["inputs"]), tensor_specs(data["outputs"]), data["batchable"])


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision: model digest + settings + what publishing learned of them."""

    key: RevisionKey
    spec: DeploymentSpec
    digest: str
    """sha256 of the model's sorted manifest (path, size, sha256)."""
    model_dir: str
    """Folder of the model's files in the store."""
    model_file: str
    """Path of the model within `model_dir`."""
    threads: int
    """Inference threads = cores granted to each replica."""
    memory_bytes: int
    """Memory reserved for, and charged to, each replica: measured high-water mark. 0 while it is unknown."""
    signature: Signature | None
    """None while publishing."""

    @property
    def concurrency(self) -> int:
        return self.spec.concurrency_for(self.signature is not None and self.signature.batchable)

    def load_order(self, replica_id: ReplicaId) -> LoadOrder:
        return LoadOrder(
            replica_id=replica_id,
            name=self.key.name,
            revision=self.key.number,
            model_dir=self.model_dir,
            model_file=self.model_file,
            engine=self.spec.engine,
            threads=self.threads,
            max_batch_rows=self.spec.max_batch,
            settings=self.spec.engine_settings,
        )


@dataclass(frozen=True, slots=True)
class Route:
    """Where the calls of one deployment go. Replaced whole by the control plane, read by the activator."""

    name: str
    state: State
    """PUBLISHING while no revision ever answered; otherwise COLD (the activator knows who is warm) or FAILED."""
    weights: tuple[tuple[int, int], ...]
    """(revision number, weight ≥ 1): who takes calls that name no version."""
    revisions: dict[int, Revision]
    """Every retained revision: `/versions/3` may wake any of them."""
