"""The lines of the machine: everything it had in a time, each core·µs and MiB·µs on exactly one of them. Pure.

Deployments have what they are charged for: granted cores while cold or busy, granted memory for the whole life. What is
left is `unallocated`. Granted cores are weights, so more may be granted than there are: then the rest is negative, and
stands on the contra line `overcommitted`. With it, the lines sum to the machine's resources to the integer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from billing.attribute import Parts
from billing.prices import Prices, apportion, round_half_even
from billing.spans import Span, cut
from billing.tenures import Taken, Tenure

DEPLOYMENTS, UNALLOCATED, OVERCOMMITTED = "deployments", "unallocated", "overcommitted"
LINES = (DEPLOYMENTS, "platform", "zygote", "pool", "cache", UNALLOCATED, OVERCOMMITTED)
"""`pool`: stem cells. `cache`: memory of shared models and kept answers. Neither is there yet: both are 0."""
_MACHINE = "machine"


def charged_core_us(cores: int, parts: Parts) -> int:
    """Return the core·µs that a deployment has of a part of a life: those while cold or busy."""
    return cores * (parts.cold_us + parts.busy_us)


class Line(NamedTuple):
    name: str
    core_us: int
    mib_us: int
    cost_nano: int

    def as_json(self, *, with_costs: bool) -> dict[str, Any]:
        used = {"line": self.name, "core_us": self.core_us, "mib_us": self.mib_us}
        return used | {"cost_nano": self.cost_nano} if with_costs else used


@dataclass(frozen=True, slots=True)
class MachineBill:
    lines: list[Line]
    """In the order of LINES."""
    total: Line
    """The machine's resources × time, and what they cost at the price book's rates."""

    def as_json(self, *, with_costs: bool = True) -> dict[str, Any]:
        lines = [line.as_json(with_costs=with_costs) for line in self.lines]
        return {"lines": lines, "total": self.total.as_json(with_costs=with_costs)}


class MachineTally:
    """Sums up what is on each line, apart for each entry of the price book."""

    def __init__(self) -> None:
        self._core_us: defaultdict[tuple[str, Prices], int] = defaultdict(int)
        self._mib_us: defaultdict[tuple[str, Prices], int] = defaultdict(int)

    def add(self, line: str, entry: Prices, core_us: int, mib_us: int) -> None:
        self._core_us[line, entry] += core_us
        self._mib_us[line, entry] += mib_us

    def add_tenure(self, tenure: Tenure, piece: Span, entry: Prices) -> None:
        """Add a piece of a tenure's spans: the machine's resources in it, and what the platform took."""
        taken = Taken(*piece.parts)
        self.add(_MACHINE, entry, tenure.cores * taken.elapsed_us, tenure.memory_mib * taken.elapsed_us)
        self.add("platform", entry, taken.platform_cpu_us, taken.platform_mib_us)
        self.add("zygote", entry, taken.zygote_cpu_us, taken.zygote_mib_us)

    def bill(self, deployments_nano: int | None = None) -> MachineBill:
        """Return all lines; they sum to the total. `deployments_nano`: what the bill says of them, rounded already."""
        for sums in (self._core_us, self._mib_us):
            for entry in {entry for _, entry in sums}:
                given = sum(sums[line, entry] for line in LINES[:-2])
                rest = sums[_MACHINE, entry] - given
                sums[UNALLOCATED, entry], sums[OVERCOMMITTED, entry] = max(0, rest), min(0, rest)
        numerators = [self._numerator(line) for line in LINES]
        if deployments_nano is None:
            deployments_nano = round_half_even(numerators[0])
        costs = [deployments_nano, *apportion(numerators[1:])]
        lines = [
            Line(name, _sum(self._core_us, name), _sum(self._mib_us, name), cost)
            for name, cost in zip(LINES, costs, strict=True)
        ]
        total = Line("total", _sum(self._core_us, _MACHINE), _sum(self._mib_us, _MACHINE), sum(costs))
        return MachineBill(lines, total)

    def _numerator(self, line: str) -> int:
        entries = {entry for name, entry in self._core_us if name == line}
        return sum(entry.cost_numerator(self._core_us[line, entry], self._mib_us[line, entry]) for entry in entries)


def _sum(sums: dict[tuple[str, Prices], int], line: str) -> int:
    return sum(amount for (name, _), amount in sums.items() if name == line)


def pieces(span: Span, borders_ns: Iterable[int], begin_ns: int, end_ns: int) -> Iterable[Span]:
    """Yield the parts of a span of wall time between borders that lie within [begin_ns, end_ns)."""
    for piece in cut(span, [begin_ns, end_ns, *borders_ns]):
        if begin_ns <= piece.begin_ns < end_ns and any(piece.parts):
            yield piece
