"""What the autoscaler works with: its neighbours, its limits, its clock and its dice."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from autoscaler.drivers.base import Driver
from serve.core.clock import NS_PER_S, Clock
from serve.core.ids import RevisionKey
from serve.core.lifecycle import Lifecycle
from serve.core.metrics import Metrics
from serve.core.scaling import ReplicaPool


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Handed down whole to every part of the autoscaler; each takes what it needs."""

    pool: ReplicaPool
    driver: Driver
    clock: Clock
    metrics: Metrics
    lifecycle: Lifecycle
    memory_budget_bytes: int
    cores: int
    logs: Path
    drain_timeout_s: float
    on_memory_learned: Callable[[RevisionKey, int], None] | None = None
    """Told a revision's memory whenever more is seen in use than the revision says."""
    chance: random.Random = field(default_factory=random.SystemRandom)
    """Of replica ids and of the jitter of pauses: one with a seed makes every run the same."""

    @property
    def drain_timeout_ns(self) -> int:
        return round(self.drain_timeout_s * NS_PER_S)
