"""Which requests share a run."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from runtime.batch import take_batch
from runtime.plans import Layout


@dataclass(frozen=True)
class Waiting:
    number: int
    layout: Layout


def waiting(*requests: tuple[str | None, int]) -> list[Waiting]:
    return [
        Waiting(number, Layout((), (), (), rows, max(1, rows), None if kind is None else (kind,)))
        for number, (kind, rows) in enumerate(requests)
    ]


def numbers(requests: list[Waiting]) -> list[int]:
    return [request.number for request in requests]


def test_requests_of_one_kind_are_joined_while_their_rows_fit() -> None:
    batch, rest = take_batch(waiting(("a", 1), ("a", 2), ("a", 1), ("a", 1)), max_rows=4)
    assert (numbers(batch), numbers(rest)) == ([0, 1, 2], [3])


def test_other_kinds_wait_and_are_passed_over() -> None:
    batch, rest = take_batch(waiting(("a", 1), ("b", 1), ("a", 1)), max_rows=4)
    assert (numbers(batch), numbers(rest)) == ([0, 2], [1])


def test_a_request_larger_than_the_limit_runs_alone() -> None:
    batch, rest = take_batch(waiting(("a", 9), ("a", 1)), max_rows=4)
    assert (numbers(batch), numbers(rest)) == ([0], [1])


def test_a_request_without_a_kind_runs_alone() -> None:
    batch, rest = take_batch(waiting((None, 1), (None, 1)), max_rows=4)
    assert (numbers(batch), numbers(rest)) == ([0], [1])


def test_none_is_overtaken_by_its_like() -> None:
    batch, rest = take_batch(waiting(("a", 1), ("a", 4), ("a", 1)), max_rows=4)
    assert (numbers(batch), numbers(rest)) == ([0], [1, 2])


kinds = st.tuples(st.sampled_from(["a", "b", None]), st.integers(0, 5))


@given(st.lists(kinds, min_size=1, max_size=20), st.integers(0, 8))
def test_every_request_runs_once_in_the_order_of_its_kind_and_within_the_limit(
    requests: list[tuple[str | None, int]], max_rows: int
) -> None:
    left, ran = waiting(*requests), []
    while left:
        oldest = left[0]
        batch, left = take_batch(left, max_rows)
        assert batch[0] is oldest
        assert len({request.layout.signature for request in batch}) == 1
        assert len(batch) == 1 or sum(request.layout.rows for request in batch) <= max_rows
        assert len(batch) == 1 or batch[0].layout.signature is not None
        ran += batch
    assert sorted(numbers(ran)) == list(range(len(requests)))
    for kind in ("a", "b", None):
        of_kind = [request.number for request in ran if request.layout.signature == (None if kind is None else (kind,))]
        assert of_kind == sorted(of_kind)
