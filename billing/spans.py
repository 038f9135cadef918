"""Cuts a stretch of time at hour, price and report borders so that the pieces sum to it exactly. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Span(NamedTuple):
    """How much there was of each of several things within [begin_ns, end_ns) of one clock."""

    begin_ns: int
    end_ns: int
    parts: tuple[int, ...]


def cut(span: Span, borders_ns: Iterable[int]) -> Iterator[Span]:
    """Yield the pieces of `span` between borders; each part spreads evenly over the span, by cumulative floor."""
    length_ns = span.end_ns - span.begin_ns
    inner_ns = sorted({border for border in borders_ns if span.begin_ns < border < span.end_ns})
    begin_ns, given = span.begin_ns, (0,) * len(span.parts)
    for border_ns in inner_ns:
        elapsed_ns = border_ns - span.begin_ns
        until = tuple(part * elapsed_ns // length_ns for part in span.parts)
        yield Span(begin_ns, border_ns, difference(until, given))
        begin_ns, given = border_ns, until
    yield Span(begin_ns, span.end_ns, difference(span.parts, given))


def multiples_between(begin_ns: int, end_ns: int, step_ns: int) -> range:
    """Return the multiples of `step_ns` after `begin_ns` and before `end_ns`."""
    return range((begin_ns // step_ns + 1) * step_ns, end_ns, step_ns)


def difference(later: tuple[int, ...], earlier: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(b - a for b, a in zip(later, earlier, strict=True))
