"""Phases of one start."""

from __future__ import annotations

from autoscaler.replica import Replica
from serve.core.events import Phase, PhaseDone
from serve.core.ids import ReplicaId


def replica(*done: PhaseDone) -> Replica:
    started = Replica(ReplicaId("digits-r1-abcdefgh"), 0, 1000, 0, 0)
    started.started_ns = 1500
    started.phases_done.extend(done)
    return started


def test_spawn_lasts_from_the_order_until_the_replica_says_it_ended() -> None:
    phases = replica(PhaseDone(Phase.SPAWN, 1200, 1700), PhaseDone(Phase.MAP, 1900, 1950)).phases_ns()
    assert phases == {Phase.SPAWN: 700, Phase.MAP: 50}


def test_spawn_nobody_reported_ends_with_the_first_other_phase() -> None:
    phases = replica(PhaseDone(Phase.LOAD, 1800, 2000), PhaseDone(Phase.MAP, 1600, 1800)).phases_ns()
    assert phases == {Phase.SPAWN: 600, Phase.MAP: 200, Phase.LOAD: 200}


def test_spawn_without_any_phase_ends_when_the_driver_has_a_process() -> None:
    assert replica().phases_ns() == {Phase.SPAWN: 500}


def test_phase_reported_in_parts_is_their_sum_and_never_negative() -> None:
    phases = replica(
        PhaseDone(Phase.FETCH, 1600, 1700), PhaseDone(Phase.FETCH, 1800, 1850), PhaseDone(Phase.MAP, 1900, 1890)
    ).phases_ns()
    assert phases == {Phase.SPAWN: 600, Phase.FETCH: 150, Phase.MAP: 0}
