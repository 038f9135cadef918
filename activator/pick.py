"""Which revision, and which of its replicas, takes the next call. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Protocol, TypeVar


class Slots(Protocol):
    @property
    def in_flight(self) -> int: ...

    @property
    def is_exclusive(self) -> bool: ...


S = TypeVar("S", bound=Slots)


def pick(replicas: Iterable[S], concurrency: int, *, alone: bool) -> S | None:
    """Return the replica with the fewest calls inside that has a free slot, or None.

    `alone`: the call was inside a replica that died, so it may be what killed it: it needs an empty replica to
    itself, and while it is inside, nothing joins it.
    """
    best: S | None = None
    limit = 1 if alone else concurrency
    for replica in replicas:
        if replica.in_flight < limit and not replica.is_exclusive:
            if replica.in_flight == 0:
                return replica
            if best is None or replica.in_flight < best.in_flight:
                best = replica
    return best


def choose(weights: tuple[tuple[int, int], ...], chance: random.Random) -> int:
    """Return a revision number by weight."""
    if len(weights) == 1:
        return weights[0][0]
    return chance.choices([number for number, _ in weights], [weight for _, weight in weights])[0]
