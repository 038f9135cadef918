from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from billing.attribute import Parts
from billing.spans import Span, cut, multiples_between

parts = st.builds(Parts, *[st.integers(-(10**6), 10**12)] * 5)


@given(parts, st.integers(0, 10**18), st.integers(0, 10**15), st.lists(st.integers(0, 2 * 10**18), max_size=30))
def test_pieces_sum_to_the_span_and_end_at_the_borders(
    parts: Parts, begin_ns: int, length_ns: int, borders_ns: list[int]
) -> None:
    span = Span(begin_ns, begin_ns + length_ns, parts)
    pieces = list(cut(span, borders_ns))
    assert Parts(*map(sum, zip(*(piece.parts for piece in pieces), strict=True))) == parts
    assert pieces[0].begin_ns == span.begin_ns
    assert pieces[-1].end_ns == span.end_ns
    assert [piece.end_ns for piece in pieces[:-1]] == sorted(
        {at for at in borders_ns if span.begin_ns < at < span.end_ns}
    )
    assert [piece.begin_ns for piece in pieces[1:]] == [piece.end_ns for piece in pieces[:-1]]


def test_time_spreads_evenly_over_a_span() -> None:
    pieces = list(cut(Span(0, 100, Parts(10, 0, 0, 90, 1)), [50, 75]))
    assert [piece.parts for piece in pieces] == [Parts(5, 0, 0, 45, 0), Parts(2, 0, 0, 22, 0), Parts(3, 0, 0, 23, 1)]


def test_multiples_are_strictly_between() -> None:
    assert list(multiples_between(10, 30, 10)) == [20]
    assert list(multiples_between(9, 31, 10)) == [10, 20, 30]
