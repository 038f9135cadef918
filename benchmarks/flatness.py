"""Whether a figure grows: a robust slope over samples, against what noise may do."""

from __future__ import annotations

import statistics
from typing import NamedTuple

Point = tuple[float, int]
"""(seconds since the beginning, value)."""


class Flat(NamedTuple):
    begin: float
    """Share of the time that is warm-up: caches fill, allocators settle, zygote and ledger are killed."""
    memory_kib: int
    memory_share: float
    """Memory may grow by the larger of the two in the time judged: allocators keep what they were given once."""
    others: float
    """Anything else may grow by so many."""


FLAT = Flat(begin=0.4, memory_kib=1536, memory_share=0.02, others=2.0)


class Series:
    """Samples by name. Written by one thread."""

    def __init__(self) -> None:
        self.points: dict[str, list[Point]] = {}

    def add(self, name: str, at_s: float, value: int) -> None:
        self.points.setdefault(name, []).append((at_s, value))

    def judged(self, name: str) -> list[Point]:
        """Return the samples after the warm-up."""
        end_s = max(points[-1][0] for points in self.points.values())
        return [point for point in self.points[name] if point[0] >= FLAT.begin * end_s]


def slope(points: list[Point]) -> float:
    """Return the median of the slopes between all pairs (Theil and Sen): a third of the points may be outliers.

    Pairs are taken half the samples apart, which costs little of its power and makes it linear.
    """
    half = len(points) // 2
    pairs = zip(points[: len(points) - half], points[half:], strict=True)
    slopes = [(later[1] - earlier[1]) / (later[0] - earlier[0]) for earlier, later in pairs if later[0] > earlier[0]]
    return statistics.median(slopes) if slopes else 0.0


def growth(points: list[Point]) -> float:
    """Return by how much the trend grew over all of `points`."""
    return slope(points) * (points[-1][0] - points[0][0]) if points else 0.0


def is_flat(name: str, points: list[Point]) -> bool:
    if not points:
        return False
    allowed = FLAT.others
    if "memory" in name:
        allowed = max(FLAT.memory_kib, FLAT.memory_share * statistics.median(value for _, value in points))
    return growth(points) <= allowed
