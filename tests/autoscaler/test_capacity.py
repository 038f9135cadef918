"""Memory admission and greedy-dual eviction."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.capacity import (
    Admitted,
    Evict,
    Resident,
    Room,
    TooLarge,
    Wait,
    admit,
    estimate_bytes,
    mib,
    reclaim,
    value,
)
from serve.core.ids import ReplicaId, RevisionKey

MIB = 1 << 20


def idle(name: str, size_mib: int, worth: float) -> Resident:
    return Resident(ReplicaId(name), RevisionKey(name, 1), size_mib * MIB, worth)


def room(budget_mib: int, reserved_mib: int, leaving_mib: int = 0) -> Room:
    return Room(budget_mib * MIB, reserved_mib * MIB, leaving_mib * MIB)


def test_what_fits_is_admitted_to_the_last_byte() -> None:
    assert admit(30 * MIB, room(100, 70), ()) == Admitted()


def test_model_larger_than_everything_is_refused_with_the_figures_and_the_remedy() -> None:
    verdict = admit(3 << 30, room(2048, 0), ())
    assert isinstance(verdict, TooLarge)
    assert "needs 3 GiB" in verdict.reason
    assert "may hold 2 GiB" in verdict.reason
    assert "SERVE_MEMORY_BUDGET" in verdict.reason


def test_least_valuable_idle_replica_goes_and_no_more_than_needed() -> None:
    candidates = [idle("dear", 40, 9.0), idle("cheap", 40, 1.0), idle("middling", 40, 5.0)]
    verdict = admit(50 * MIB, room(130, 120), candidates)
    assert isinstance(verdict, Evict)
    assert [victim.id for victim in verdict.victims] == ["cheap"]
    assert verdict.reason == "50 MiB are needed, 120 MiB of 130 MiB are taken; cheap is worth least"


def test_small_one_is_spared_when_a_larger_one_frees_enough_alone() -> None:
    verdict = admit(50 * MIB, room(100, 100), [idle("small", 10, 1.0), idle("large", 80, 2.0)])
    assert isinstance(verdict, Evict)
    assert [victim.id for victim in verdict.victims] == ["large"]


def test_nothing_is_evicted_in_vain() -> None:
    verdict = admit(50 * MIB, room(100, 100), [idle("small", 10, 1.0)])
    assert verdict == Wait(
        "50 MiB are needed, 100 MiB of 100 MiB are taken and only 10 MiB of that are idle: requests queue"
    )


def test_memory_that_is_being_given_back_is_waited_for_and_nobody_else_evicted() -> None:
    verdict = admit(50 * MIB, room(100, 100, leaving_mib=60), [idle("other", 60, 1.0)])
    assert verdict == Wait("50 MiB are needed, 100 MiB of 100 MiB are taken; 60 MiB are being given back")


def test_idle_replicas_are_not_looked_at_while_there_is_room() -> None:
    def explode() -> Resident:
        raise AssertionError("looked at")

    assert admit(1, room(100, 50), (explode() for _ in range(1))) == Admitted()


def test_reservations_over_the_budget_are_reclaimed_from_idle_replicas() -> None:
    candidates = [idle("dear", 40, 9.0), idle("cheap", 40, 1.0)]
    assert [victim.id for victim in reclaim(room(100, 130), candidates)] == ["cheap"]
    assert reclaim(room(100, 100), candidates) == ()
    assert reclaim(room(100, 130, leaving_mib=30), candidates) == ()
    assert len(reclaim(room(100, 500), candidates)) == 2, "all there is, if that is too few"


def test_value_rises_with_use_and_cold_start_and_falls_with_size() -> None:
    base = value(1.0, 10, 0.5, 100)
    assert value(1.0, 20, 0.5, 100) > base
    assert value(1.0, 10, 1.0, 100) > base
    assert value(1.0, 10, 0.5, 200) < base
    assert value(2.0, 10, 0.5, 100) > base
    assert value(0.0, 0, 0.5, 100) > 0, "even one that was never used costs its start"


def test_estimate_is_twice_the_model_and_a_process() -> None:
    assert estimate_bytes(100 * MIB) == 264 * MIB


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 MiB"), (512 * 1024, "0.5 MiB"), (40 * MIB, "40 MiB"), (3 << 29, "1.5 GiB")]
)
def test_sizes_read_like_a_person_writes_them(size_bytes: int, text: str) -> None:
    assert mib(size_bytes) == text


candidates_strategy = st.lists(st.builds(idle, st.uuids().map(str), st.integers(1, 100), st.floats(0, 10)), max_size=8)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 400), st.integers(0, 100), candidates_strategy)
def test_verdict_is_always_one_that_can_come_true(
    need_mib: int, budget_mib: int, busy_mib: int, leaving_mib: int, candidates: list[Resident]
) -> None:
    idle_mib = sum(replica.memory_bytes for replica in candidates) // MIB
    place = room(budget_mib, busy_mib + leaving_mib + idle_mib, leaving_mib)
    verdict = admit(need_mib * MIB, place, candidates)
    match verdict:
        case Admitted():
            assert place.reserved_bytes + need_mib * MIB <= place.budget_bytes
        case TooLarge():
            assert need_mib > budget_mib
        case Evict(victims, _):
            missing_mib = need_mib - (budget_mib - busy_mib - idle_mib)
            freed_mib = sum(victim.memory_bytes for victim in victims) // MIB
            assert freed_mib >= missing_mib, "together with what is leaving it fits"
            assert all(freed_mib - victim.memory_bytes // MIB < missing_mib for victim in victims), "none in vain"
            assert set(victims) <= set(candidates)
        case Wait():
            missing_mib = need_mib - (budget_mib - busy_mib - idle_mib)
            assert need_mib <= budget_mib
            assert place.reserved_bytes + need_mib * MIB > place.budget_bytes
            assert missing_mib <= 0 or idle_mib < missing_mib
