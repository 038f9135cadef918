"""The gate under everything that can happen to it, in any order: what DESIGN §3 promises holds after every step."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from activator.replay import MAX_TRIES, REPLAYABLE_ENGINES
from serve.core.clock import NS_PER_MS, NS_PER_S, NS_PER_US
from serve.core.errors import ModelFailed, QueueFull, QueueTimeout, ReplicaLost, ServeError, UnknownVersion
from serve.core.events import ExitReason
from tests.activator.gate_world import (
    CONCURRENCY,
    HELD_LATE_NS,
    LATE_NS,
    POISON,
    QUEUE,
    FollowedCall,
    GateWorld,
    Played,
)

DEATHS = {
    "killed from outside": (ExitReason.CRASHED, 9),
    "told to stop": (ExitReason.STOPPED, None),
}
INDEX = st.integers(0, 7)
EXAMPLES = int(os.environ.get("GATE_EXAMPLES", "100"))
"""More are for `make fuzz`."""


class GateMachine(RuleBasedStateMachine):
    """`bodies`, `replicas` and `calls` are named by an index into those that are there."""

    @initialize(engine=st.sampled_from(["onnx", "onnx", "onnx", "python"]), replicas=st.integers(0, 2))
    def begin(self, engine: str, replicas: int) -> None:
        self.world = GateWorld(engine)
        for _ in range(replicas):
            self.replica_assigned(is_ready=True)

    @property
    def ready(self) -> list[Played]:
        return [played for played in self.world.replicas if played.is_ready]

    def settle(self, is_settled: bool) -> None:
        if is_settled:
            self.world.loop.settle()

    # Callers ---------------------------------------------------------------------------------------------------------

    @rule(
        sizes=st.lists(st.sampled_from([1, 2, 3, 200]), min_size=1, max_size=5),
        poison=st.sampled_from([None, None, 0, 1]),
        timeout_s=st.sampled_from([10.0, 10.0, 1.0]),
        wait_s=st.sampled_from([100.0, 100.0, 100.0, 0.5, 0.0]),
        settle=st.booleans(),
    )
    def submit(self, sizes: list[int], poison: int | None, timeout_s: float, wait_s: float, settle: bool) -> None:
        for number, size in enumerate(sizes):
            self.submit_one((POISON if number == poison else b".") * size, timeout_s, wait_s)
        self.settle(settle)

    def submit_one(self, body: bytes, timeout_s: float, wait_s: float) -> None:
        world = self.world
        gate = world.gate
        was_full = gate.pending >= QUEUE
        before, turned_away = gate._load._arrivals, gate._load._turned_away
        error = world.loop.act(lambda: world.submit(body, int(timeout_s * NS_PER_S), int(wait_s * NS_PER_S)))
        if error is not None:
            assert isinstance(error, UnknownVersion | QueueFull | QueueTimeout | ModelFailed)
            assert isinstance(error, UnknownVersion) == gate.is_removed
            assert not isinstance(error, QueueFull) or was_full
            assert not isinstance(error, QueueTimeout) or wait_s == 0
            assert gate.is_removed or gate._load._arrivals == before + 1, "what is turned away is demand, too"
            assert gate.is_removed or gate._load._turned_away == turned_away + 1

    @precondition(lambda self: self.world.calls)
    @rule(which=INDEX, settle=st.booleans())
    def caller_leaves(self, which: int, settle: bool) -> None:
        open_calls = [call for call in self.world.calls if not call.is_done]
        if open_calls:
            self.world.loop.act(open_calls[which % len(open_calls)].leave)
        self.settle(settle)

    # Replicas --------------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.world.replicas) < 3 and not self.world.gate.is_removed)
    @rule(is_ready=st.sampled_from([True, True, False]))
    def replica_assigned(self, is_ready: bool) -> None:
        played = self.world.loop.act(self.world.assign)
        if is_ready:
            self.world.loop.act(lambda: self.world.ready(played))

    @precondition(lambda self: any(not played.is_ready for played in self.world.replicas))
    @rule()
    def replica_ready(self) -> None:
        played = next(played for played in self.world.replicas if not played.is_ready)
        self.world.loop.act(lambda: self.world.ready(played))

    @precondition(lambda self: any(played.connection.is_open for played in self.world.replicas))
    @rule(which=INDEX, dies_at_once=st.sampled_from([False, False, True]), settle=st.booleans())
    def replica_retired(self, which: int, dies_at_once: bool, settle: bool) -> None:
        found = [played for played in self.world.replicas if played.connection.is_open]
        played = found[which % len(found)]

        def retire() -> None:
            self.world.retire(played)
            if dies_at_once:
                self.world.gone(played, ExitReason.CRASHED, 9)

        self.world.loop.act(retire)
        self.settle(settle)

    @precondition(lambda self: self.ready)
    @rule(which=INDEX, picks=st.lists(INDEX, min_size=1, max_size=4), settle=st.booleans())
    def replica_answers(self, which: int, picks: list[int], settle: bool) -> None:
        paper = self.ready[which % len(self.ready)].paper
        if paper.inside:
            streams = list(paper.inside)
            self.world.loop.act(lambda: paper.answer(dict.fromkeys(streams[pick % len(streams)] for pick in picks)))
        self.settle(settle)

    @precondition(lambda self: self.ready)
    @rule(which=INDEX, settle=st.booleans())
    def answer_comes_as_its_caller_leaves(self, which: int, settle: bool) -> None:
        played = self.ready[which % len(self.ready)]
        calls = dict(played.connection.outstanding)

        def both() -> None:
            played.paper.answer(list(played.paper.inside))
            for call in calls.values():
                call.leave()

        self.world.loop.act(both)
        self.settle(settle)

    @precondition(lambda self: self.world.replicas)
    @rule(which=INDEX, how=st.sampled_from(sorted(DEATHS)), answers_first=st.booleans(), settle=st.booleans())
    def replica_dies(self, which: int, how: str, answers_first: bool, settle: bool) -> None:
        played = self.world.replicas[which % len(self.world.replicas)]

        def die() -> None:
            if answers_first and played.is_ready:
                played.paper.answer(list(played.paper.inside)[:1])
            self.world.gone(played, *DEATHS[how])

        self.world.loop.act(die)
        self.settle(settle)

    @precondition(lambda self: self.ready)
    @rule(which=INDEX)
    def link_is_lost(self, which: int) -> None:
        played = self.ready[which % len(self.ready)]
        self.world.loop.act(played.paper.link.hang_up)
        self.world.loop.settle()
        assert not played.connection.is_open

    @precondition(lambda self: any(played.paper.inside for played in self.ready))
    @rule()
    def poison_strikes(self) -> None:
        for played in list(self.ready):
            if any(inside.body.startswith(POISON) for inside in played.paper.inside.values()):
                self.world.loop.act(lambda played=played: self.world.gone(played, ExitReason.CRASHED, 11))  # type: ignore[misc]

    @precondition(lambda self: any(played.connection.is_overdue for played in self.world.replicas))
    @rule()
    def overdue_replicas_are_killed(self) -> None:
        for played in list(self.world.replicas):
            if played.info.id in self.world.listener.overdue:
                self.world.loop.act(
                    lambda played=played: self.world.gone(played, ExitReason.EXECUTION_TIMEOUT, 9)  # type: ignore[misc]
                )

    # Everything else -------------------------------------------------------------------------------------------------

    @rule(
        duration_ns=st.sampled_from([0, NS_PER_US, NS_PER_MS, NS_PER_S // 2, NS_PER_S, 3 * NS_PER_S]),
        extra_ns=st.integers(0, 1000),
    )
    def time_passes(self, duration_ns: int, extra_ns: int) -> None:
        self.world.loop.advance(duration_ns + extra_ns)

    @rule(kind=st.sampled_from(["disk refuses", "disk takes", "no replica", "no replica soon", "drain", "removed"]))
    def something_ends(self, kind: str) -> None:
        world = self.world
        refusal = ModelFailed("it does not start", retry_after_s=1.0)
        match kind:
            case "disk refuses" | "disk takes":
                world.journal.refuses = kind == "disk refuses"
            case "no replica":
                world.loop.act(lambda: world.router.fail_pending(world.gate.key, refusal))
                assert world.gate.pending == 0
            case "no replica soon":
                world.refuse_at_next_poke(refusal)
            case "drain" if len(world.calls) > 15:
                world.loop.act(world.router.end_drain)
                assert world.gate.pending == world.gate.in_flight == 0
            case "removed" if len(world.calls) > 15:
                world.loop.act(lambda: world.router.remove_revision(world.gate.key))
                assert world.gate.pending == 0

    # What always holds -----------------------------------------------------------------------------------------------

    @invariant()
    def promises(self) -> None:
        self.every_call_is_in_one_place_and_ends_once()
        self.books_of_the_gate_are_exact()
        self.limits_are_kept()
        self.nobody_waits_while_there_is_a_slot()
        self.deadlines_are_met()
        self.load_is_its_integral()
        self.innocents_are_never_told_that_they_killed_a_replica()
        self.retired_and_empty_replicas_are_reported()

    def every_call_is_in_one_place_and_ends_once(self) -> None:
        for call in self.world.calls:
            place = self.world.place_of(call)
            assert call.ends == call.is_done <= 1
            assert call.is_done or place != "nowhere", "lost"
            assert place != "line" or not call.is_done, "answered, and still waits"
            assert place != "inside" or call.is_done == call.is_left

    def books_of_the_gate_are_exact(self) -> None:
        gate = self.world.gate
        held = [call for call in self.world.calls if call.gone_ns is None]
        inside = [call for call in held if self.world.place_of(call) == "inside"]
        assert gate.room.held_bytes == sum(len(call.body) for call in held)
        assert gate.in_flight == len(inside) == sum(played.connection.in_flight for played in self.world.replicas)
        assert gate.pending == len(held) - len(inside)

    def limits_are_kept(self) -> None:
        gate = self.world.gate
        assert sum(not call.dispatched_ns for call in gate._line.fresh) <= QUEUE, "who was sent may be back"
        for connection in gate.connections.values():
            inside = list(connection.outstanding.values())
            assert connection.in_flight == sum(not call.is_left for call in inside) <= CONCURRENCY
            is_suspect_inside = any(call.tries for call in inside)
            assert connection.is_exclusive == is_suspect_inside
            assert len(inside) == 1 or not is_suspect_inside, "who was inside a replica that died is alone"
        if self.world.engine not in REPLAYABLE_ENGINES:
            assert all(times == 1 for times in self.world.sent.values()), "user code ran twice"

    def nobody_waits_while_there_is_a_slot(self) -> None:
        gate = self.world.gate
        ready = [played.connection for played in self.world.replicas if played.connection.is_open]
        assert set(gate._open) == set(ready)
        assert len(gate._open) == len(ready)
        is_served = any(connection.is_exclusive for connection in ready)
        for connection in ready:
            has_slot = connection.in_flight < CONCURRENCY and not connection.is_exclusive
            is_spared = connection is gate._spared and gate._line.suspects and not connection.is_empty
            assert not (gate._line.fresh and has_slot and not is_spared), "a fresh call waits for nothing"
            if gate._line.suspects and connection.is_empty and not connection.is_exclusive:
                assert gate._line.fresh, "a suspect waits for nothing"
                assert is_served, "a suspect waits for nothing"

    def deadlines_are_met(self) -> None:
        now_ns = self.world.loop.now_ns
        for call in self.world.calls:
            place = self.world.place_of(call)
            if not call.is_done:
                late_ns = HELD_LATE_NS if place == "held" else LATE_NS
                assert now_ns <= call.deadline_ns + late_ns
                assert place != "line" or now_ns <= call.wait_until_ns + LATE_NS
        gate = self.world.gate
        for connection in gate.connections.values():
            for inside in connection.outstanding.values():
                until_ns = inside.inside_until_ns(gate._execution_timeout_ns)
                assert inside.is_left or now_ns <= until_ns + LATE_NS
                limit_ns = inside.dispatched_ns + gate._execution_timeout_ns + LATE_NS
                assert connection.is_overdue or now_ns <= limit_ns, "a replica hangs and nobody is told"

    def load_is_its_integral(self) -> None:
        now_ns = self.world.loop.now_ns
        demand = self.world.router.demand(self.world.gate.key, now_ns)
        if self.world.gate.is_removed:
            return
        lives = [(call.gone_ns or now_ns) - call.came_ns for call in self.world.calls if call.gone_ns != 0]
        assert demand.concurrency_ns == sum(lives)
        assert demand.in_flight + demand.pending == self.world.gate._load.concurrency

    def innocents_are_never_told_that_they_killed_a_replica(self) -> None:
        for call in self.world.calls:
            if isinstance(call.outcome, ReplicaLost) and self.world.engine in REPLAYABLE_ENGINES:
                assert (
                    call.is_poison
                    or call.tries >= MAX_TRIES
                    or self.world.gate.is_removed
                    or self.world.loop.now_ns >= call.deadline_ns
                )

    def retired_and_empty_replicas_are_reported(self) -> None:
        if self.world.loop._ready_now():
            return
        for played in self.world.replicas:
            if played.is_retired and played.connection.is_empty:
                assert played.info.id in self.world.listener.empty

    # The end ---------------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        try:
            world.journal.refuses = False
            world.listener.on_poke = None
            for played in list(world.replicas):
                world.loop.act(lambda played=played: world.gone(played, ExitReason.STOPPED, 9))  # type: ignore[misc]
            world.loop.advance(30 * NS_PER_S)
            self.every_call_is_in_one_place_and_ends_once()
            assert all(call.is_done for call in world.calls)
            assert world.gate.room.held_bytes == 0
            assert world.gate._deadlines._timer is None, "a gate at rest has no timer"
            self.check_records()
        finally:
            world.close()

    def check_records(self) -> None:
        records = Counter(record["id"] for record in self.world.records("request"))
        expected = Counter({call.request_id: 1 for call in self.world.calls if ended_inside(call)})
        assert records == expected, "one record for each call that ended inside a replica"
        for record in self.world.records("request"):
            call = next(call for call in self.world.calls if call.request_id == record["id"])
            left_behind_its_answer = call.outcome is None and record["status"] == 200
            assert record["status"] == told(call) or left_behind_its_answer
            assert not record["charged"] or (call.refusal is None and record["status"] < 500)
        for segment in self.world.records("segment"):
            if segment["exit_reason"] is not None:
                assigned_ns, gone_ns = self.world.exits.pop(segment["replica"])
                parts = [segment[f"{part}_us"] for part in ("cold", "billed", "lost", "idle", "drain")]
                assert min(parts) >= 0
                assert sum(parts) == (gone_ns - assigned_ns) // NS_PER_US, "the parts are the life"
        assert not self.world.exits, "every life is closed"


def ended_inside(call: FollowedCall) -> bool:
    """Whether the call came to its end in a replica: only who waits is told these."""
    return call.last_place == "inside" and not isinstance(call.outcome, ModelFailed | UnknownVersion | QueueTimeout)


def told(call: FollowedCall) -> int:
    """Return the status that the caller of a call got that was inside a replica at its end."""
    if isinstance(call.outcome, ServeError):
        return call.outcome.status
    return 499 if call.outcome is None else call.outcome.head.status


@pytest.mark.filterwarnings("ignore:.*:hypothesis.errors.NonInteractiveExampleWarning")
def test_every_accepted_call_is_answered_or_refused_once_whatever_happens() -> None:
    run_state_machine_as_test(
        GateMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=60,
            deadline=None,
            report_multiple_bugs=False,
            phases=(Phase.generate, Phase.shrink),
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
