"""Prices and exact money. Pure; `billing.price_file` reads a book from YAML.

Prices are integer nano-units of a currency. A cost is kept as an integer numerator over `COST_DENOMINATOR` until it
is printed, so that sums are exact whatever their order; then it is rounded once, half to even.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MIB_PER_GIB = 1024
US_PER_S = 1_000_000
COST_DENOMINATOR = MIB_PER_GIB * US_PER_S
"""Costs are numerators over this: (core·µs × nano per core-second × 1024) + (MiB·µs × nano per GiB-second)."""


@dataclass(frozen=True, slots=True)
class Prices:
    """One dated entry of a price book."""

    effective_ns: int
    """Wall time from which it applies."""
    currency: str
    core_second_nano: int
    gib_second_nano: int
    request_nano: int
    """Fee per charged request."""

    @property
    def version(self) -> str:
        """Name of exactly these figures: stands on each request record."""
        text = "|".join(str(value) for value in self.as_record().values() if value is not None)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def as_record(self) -> dict[str, Any]:
        """Return the fields as they stand in the journal."""
        return {
            "effective_ns": self.effective_ns,
            "currency": self.currency,
            "core_second_nano": self.core_second_nano,
            "gib_second_nano": self.gib_second_nano,
            "request_nano": self.request_nano,
        }

    def cost_numerator(self, core_us: int, mib_us: int, requests: int = 0) -> int:
        """Return an exact cost over `COST_DENOMINATOR`."""
        resources = core_us * self.core_second_nano * MIB_PER_GIB + mib_us * self.gib_second_nano
        return resources + requests * self.request_nano * COST_DENOMINATOR


class PriceBook:
    """Dated prices of one currency, oldest first. Time before the first entry has the first entry's prices."""

    def __init__(self, entries: Iterable[Prices]) -> None:
        self.entries = tuple(sorted(entries, key=lambda entry: entry.effective_ns))
        if not self.entries:
            raise ValueError("the price book is empty: give it at least one entry")
        if len({entry.currency for entry in self.entries}) > 1:
            raise ValueError("the price book mixes currencies: sums need one; use the same currency in every entry")
        self._effective_ns = [entry.effective_ns for entry in self.entries]
        if len(set(self._effective_ns)) < len(self.entries):
            raise ValueError("two entries of the price book have the same `from`: remove one")

    @property
    def currency(self) -> str:
        return self.entries[0].currency

    def at(self, wall_ns: int) -> Prices:
        """Return the prices in force at a wall time."""
        return self.entries[max(0, bisect.bisect_right(self._effective_ns, wall_ns) - 1)]

    def changes_ns(self) -> list[int]:
        """Return the wall times at which prices change."""
        return self._effective_ns[1:]


def round_half_even(numerator: int, denominator: int = COST_DENOMINATOR) -> int:
    """Return numerator / denominator as the nearest integer, ties to even."""
    whole, rest = divmod(numerator, denominator)
    return whole + (2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1))


def apportion(numerators: Sequence[int], denominator: int = COST_DENOMINATOR) -> list[int]:
    """Round lines so that they sum to the rounded total (largest remainder; Hamilton's method). Ties: first line."""
    wholes = [numerator // denominator for numerator in numerators]
    missing = round_half_even(sum(numerators), denominator) - sum(wholes)
    by_remainder = sorted(range(len(numerators)), key=lambda line: -(numerators[line] % denominator))
    for line in by_remainder[:missing]:
        wholes[line] += 1
    return wholes
