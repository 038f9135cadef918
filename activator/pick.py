"""Which revision, and which of its replicas, takes the next call. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Protocol, TypeVar


class Slots(Protocol):
    @property
    def in_flight(self) -> int:
        """Slots that are taken."""

    @property
    def is_empty(self) -> bool:
        """Nothing is inside, not even a call whose caller left."""

    @property
    def is_exclusive(self) -> bool:
        """A call that must be alone is inside."""


S = TypeVar("S", bound=Slots)


def pick(replicas: Iterable[S], concurrency: int, spared: S | None = None) -> S | None:
    """Return the replica with the fewest calls inside that has a free slot, or None.

    Nothing joins a call that must be alone, and nothing goes to `spared`, which is kept for such a one.
    """
    best: S | None = None
    for replica in replicas:
        if replica.in_flight < concurrency and not replica.is_exclusive and replica is not spared:
            if replica.in_flight == 0:
                return replica
            if best is None or replica.in_flight < best.in_flight:
                best = replica
    return best


def pick_alone(replicas: Iterable[S], *, others_wait: bool) -> tuple[S | None, S | None]:
    """Return (replica for a call that must be alone, replica to spare until it is empty); at most one is given.

    While others wait, at most one replica at a time serves or is spared for such calls, so that they do not take all.
    """
    spared: S | None = None
    empty: S | None = None
    is_served = False
    for replica in replicas:
        if replica.is_exclusive:
            is_served = True
        elif replica.is_empty:
            empty = empty or replica
        elif spared is None or replica.in_flight < spared.in_flight:
            spared = replica
    if is_served and (others_wait or empty is None):
        return None, None
    return (empty, None) if empty is not None else (None, spared)


def choose(weights: tuple[tuple[int, int], ...], chance: random.Random) -> int:
    """Return a revision number by weight."""
    if len(weights) == 1:
        return weights[0][0]
    return chance.choices([number for number, _ in weights], [weight for _, weight in weights])[0]
