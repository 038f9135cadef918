"""Greedy-dual-size-frequency: what is cheap, rare and large goes first, and nothing goes in vain."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cache.evict import Candidate, choose, priority

MIB = 1 << 20


def test_frequent_and_costly_models_are_worth_more_and_large_ones_less() -> None:
    base = priority(0.0, 1, 1.0, MIB)
    assert priority(0.0, 2, 1.0, MIB) > base
    assert priority(0.0, 1, 2.0, MIB) > base
    assert priority(0.0, 1, 1.0, 2 * MIB) < base
    assert priority(3.0, 1, 1.0, MIB) == base + 3.0


def _candidate(digest: str, worth: float, *blobs: str) -> Candidate:
    return Candidate(digest, worth, frozenset(blobs))


def test_lowest_priority_goes_first_and_the_clock_rises_to_it() -> None:
    candidates = [_candidate("a", 3.0, "x"), _candidate("b", 1.0, "y"), _candidate("c", 2.0, "z")]
    victims = choose(candidates, {"x": 1, "y": 1, "z": 1}, {"x": 5, "y": 5, "z": 5}, frozenset(), 6, 0.0)
    assert victims is not None
    assert victims.models == ("b", "c")
    assert (victims.freed_bytes, victims.clock) == (10, 2.0)


def test_contents_without_a_model_go_before_any_model() -> None:
    victims = choose([_candidate("a", 1.0, "x")], {"x": 1}, {"x": 5, "loose": 5}, frozenset(), 5, 0.5)
    assert victims is not None
    assert victims.models == ()
    assert victims.blobs == {"loose"}
    assert victims.clock == 0.5


def test_a_model_whose_contents_others_need_is_not_dropped_in_vain() -> None:
    candidates = [_candidate("shares", 1.0, "x"), _candidate("owns", 2.0, "y")]
    victims = choose(candidates, {"x": 2, "y": 1}, {"x": 5, "y": 5}, frozenset(), 5, 0.0)
    assert victims is not None
    assert victims.models == ("owns",)


def test_nothing_is_chosen_where_all_of_it_would_not_be_enough() -> None:
    assert choose([_candidate("a", 1.0, "x")], {"x": 1}, {"x": 5}, frozenset(), 6, 0.0) is None
    assert choose([_candidate("a", 1.0, "x")], {"x": 1}, {"x": 5}, frozenset({"x"}), 1, 0.0) is None


_SIZES = st.dictionaries(st.sampled_from("uvwxyz"), st.integers(0, 9), min_size=6)
_MODELS = st.lists(
    st.tuples(st.frozensets(st.sampled_from("uvwxyz"), min_size=1), st.floats(0, 9), st.booleans()), max_size=6
)


@given(_SIZES, _MODELS, st.frozensets(st.sampled_from("uvwxyz")), st.integers(1, 40))
def test_what_is_freed_is_enough_and_belongs_to_nobody_who_stays(
    sizes: dict[str, int], models: list[tuple[frozenset[str], float, bool]], held: frozenset[str], needed: int
) -> None:
    references = Counter(blob for blobs, _, _ in models for blob in blobs)
    named = {f"m{number}": model for number, model in enumerate(models)}
    candidates = [Candidate(name, worth, blobs) for name, (blobs, worth, pinned) in named.items() if not pinned]
    victims = choose(candidates, references, sizes, held, needed, 0.0)
    staying_with_pins = {blob for blobs, _, pinned in named.values() if pinned for blob in blobs}
    possible = sum(size for blob, size in sizes.items() if blob not in held | staying_with_pins)
    if victims is None:
        assert possible < needed
        return
    staying = {blob for name, (blobs, _, _) in named.items() if name not in victims.models for blob in blobs}
    assert victims.freed_bytes == sum(sizes[blob] for blob in victims.blobs) >= needed
    assert not victims.blobs & (held | staying)
    assert all(named[name][0] & victims.blobs for name in victims.models)
