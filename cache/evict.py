"""Which models leave the store when space is needed: greedy-dual-size-frequency. Pure: numbers in, names out.

Source: L. Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency caching policy", HP Labs
HPL-98-69, 1998. The clock rises to the priority of each victim, so that what was useful long ago ages without timers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may go. `blobs`: the contents it refers to."""

    digest: str
    priority: float
    blobs: frozenset[str]


@dataclass(frozen=True, slots=True)
class Victims:
    """What leaves: models first, then the contents that nothing refers to any more."""

    models: tuple[str, ...]
    blobs: frozenset[str]
    freed_bytes: int
    clock: float
    """The clock of the priorities from now on."""


def priority(clock: float, frequency: int, cost_s: float, size_bytes: int) -> float:
    """Return a model's worth: uses × seconds to bring it back, per MiB it occupies, on top of the clock."""
    return clock + frequency * cost_s / max(size_bytes / (1 << 20), 1e-6)


def choose(
    candidates: Iterable[Candidate],
    references: Mapping[str, int],
    sizes: Mapping[str, int],
    held: frozenset[str],
    needed_bytes: int,
    clock: float,
) -> Victims | None:
    """Return whom to drop so that `needed_bytes` become free, or None where even dropping all is not enough.

    `references`: number of models that refer to each content, pinned ones included; a content is freed with the last
    of them, unless it is in `held`. Contents without any reference go first: nobody can run them. A model that would
    go without freeing a byte, because others share all its contents, stays.
    """
    left = dict(references)
    gone: set[str] = set()
    freed_bytes = 0
    for blob in sorted(sizes):
        if freed_bytes < needed_bytes and not left.get(blob) and blob not in held:
            gone.add(blob)
            freed_bytes += sizes[blob]
    taken: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda item: (item.priority, item.digest)):
        if freed_bytes >= needed_bytes:
            break
        taken.append(candidate)
        for blob in candidate.blobs:
            left[blob] -= 1
            if not left[blob] and blob not in held:
                gone.add(blob)
                freed_bytes += sizes[blob]
    if freed_bytes < needed_bytes:
        return None
    useful = [candidate for candidate in taken if candidate.blobs & gone]
    return Victims(
        models=tuple(candidate.digest for candidate in useful),
        blobs=frozenset(gone),
        freed_bytes=freed_bytes,
        clock=max((candidate.priority for candidate in useful), default=clock),
    )
