"""Every parser that meets bytes of others holds its contract: on good ones, on what once broke it, on mutations."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutate import inputs
from tests.fuzz.target import CORPUS
from tests.fuzz.targets import TARGETS

EXAMPLES = 150
SLOW = {"journal": 25}
"""Examples of targets that write files and ledgers."""

EVERY = pytest.mark.parametrize("name", sorted(TARGETS))


@EVERY
def test_good_inputs_and_those_that_once_were_too_much_are_handled(name: str) -> None:
    target = TARGETS[name]
    for data in (*target.seeds, *(path.read_bytes() for path in target.corpus())):
        target.one_input(data)


@EVERY
def test_mutations_of_good_inputs_are_handled(name: str) -> None:
    target = TARGETS[name]

    @settings(
        max_examples=SLOW.get(name, EXAMPLES),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        print_blob=True,
    )
    @given(inputs(target))
    def holds(data: bytes) -> None:
        target.one_input(data)

    holds()


@given(st.binary(max_size=50))
@settings(deadline=None)
def test_any_bytes_at_all_are_handled_by_every_target(data: bytes) -> None:
    for target in TARGETS.values():
        if target.name != "journal":  # slow, and 50 bytes are no line of it
            target.one_input(data)


def test_no_target_without_seeds_and_no_corpus_without_a_target() -> None:
    assert all(target.seeds for target in TARGETS.values())
    assert {path.name for path in CORPUS.iterdir()} <= set(TARGETS)
