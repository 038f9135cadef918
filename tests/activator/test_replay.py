"""Whose replica died is tried again: alone, without blame for what was not its doing, and never if user code ran."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from activator.pick import pick_alone
from activator.replay import MAX_TRIES
from serve.core.clock import NS_PER_S
from serve.core.errors import QueueFull, ReplicaLost
from serve.core.events import ExitReason
from serve.core.frames import Frame, Kind, pack
from serve.core.link import FrameLink
from tests.activator.gate_world import KEY, QUEUE, FollowedCall, GateWorld, Played

CRASH = (ExitReason.CRASHED, 11)
KILL_9 = (ExitReason.CRASHED, 9)


@pytest.fixture
def world() -> Iterator[GateWorld]:
    world = GateWorld("onnx")
    yield world
    world.close()


@pytest.fixture
def user_code() -> Iterator[GateWorld]:
    world = GateWorld("python")
    yield world
    world.close()


def start(world: GateWorld) -> Played:
    played = world.loop.act(world.assign)
    world.loop.act(lambda: world.ready(played))
    world.loop.settle()
    return played


def ask(world: GateWorld, count: int = 1, wait_s: float = 100.0) -> list[FollowedCall]:
    before = len(world.calls)
    for _ in range(count):
        assert world.loop.act(lambda: world.submit(b".", 10 * NS_PER_S, int(wait_s * NS_PER_S))) is None
    world.loop.settle()
    return world.calls[before:]


def die(world: GateWorld, played: Played, how: tuple[ExitReason, int] = CRASH) -> None:
    world.loop.act(lambda: world.gone(played, *how))
    world.loop.settle()


def answer(world: GateWorld, played: Played) -> None:
    world.loop.act(lambda: played.paper.answer(list(played.paper.inside)))
    world.loop.settle()


def test_a_call_that_was_sent_is_tried_again_though_it_would_not_have_waited_so_long(world: GateWorld) -> None:
    first = start(world)
    (call,) = ask(world, wait_s=0.5)
    die(world, first)
    world.loop.advance(5 * NS_PER_S)
    answer(world, start(world))
    assert world.reply_of(call) is not None


def test_a_call_that_found_no_second_replica_by_its_deadline_is_told_that_its_replica_died(world: GateWorld) -> None:
    first = start(world)
    (call,) = ask(world)
    die(world, first)
    world.loop.advance(11 * NS_PER_S)
    assert isinstance(call.outcome, ReplicaLost)


def test_replicas_that_others_killed_are_no_reason_to_give_a_call_up_but_not_for_ever(world: GateWorld) -> None:
    lucky, unlucky = ask(world, 2)
    for _ in range(MAX_TRIES - 1):
        die(world, start(world), KILL_9)
    last = start(world)
    assert [inside.head.request_id for inside in last.paper.inside.values()] == [lucky.request_id]
    answer(world, last)
    die(world, last, KILL_9)
    assert world.reply_of(lucky) is not None
    for _ in range(MAX_TRIES):
        if not unlucky.is_done:
            die(world, start(world), KILL_9)
    assert isinstance(unlucky.outcome, ReplicaLost)


def test_while_a_suspect_waits_for_one_replica_the_others_serve_on(world: GateWorld) -> None:
    start(world)
    spared = start(world)
    doomed = start(world)
    busy = ask(world, 3)
    die(world, doomed)
    suspect = next(call for call in busy if call.tries)
    ask(world, 4)
    assert sum(len(played.paper.inside) for played in world.replicas) == 3, "one slot is spared"
    assert world.gate.pending == 4
    spared = next(played for played in world.replicas if played.connection is world.gate._spared)
    answer(world, spared)
    assert list(spared.connection.outstanding.values()) == [suspect]
    world.loop.act(suspect.leave)
    answer(world, spared)
    assert spared.connection.in_flight == 2, "nobody is spared for suspects that are gone"


def test_suspects_that_are_gone_spare_no_replica(world: GateWorld) -> None:
    busy, doomed = start(world), start(world)
    calls = ask(world, 2)
    die(world, doomed)
    suspect = next(call for call in calls if call.tries)
    assert world.gate._spared is busy.connection
    waiting = ask(world, 1)
    assert world.gate.pending == 2
    world.loop.act(suspect.leave)
    assert world.gate.pending == 0
    assert waiting[0] in busy.connection.outstanding.values()


def test_a_suspect_does_not_join_a_call_whose_caller_left(world: GateWorld) -> None:
    doomed, haunted = start(world), start(world)
    first, left = ask(world, 2)
    world.loop.act(left.leave)
    die(world, doomed)
    assert first.tries == 1
    assert haunted.connection.in_flight == 0
    assert world.gate.pending == 1
    answer(world, haunted)
    assert list(haunted.connection.outstanding.values()) == [first]


def test_nothing_is_sent_to_a_replica_whose_last_words_are_read_after_its_end(user_code: GateWorld) -> None:
    dying = start(user_code)
    _, _, waiting = ask(user_code, 3)

    def last_words() -> None:
        dying.paper.answer(list(dying.paper.inside))
        user_code.gone(dying, *KILL_9)

    user_code.loop.act(last_words)
    assert dying.paper.link.undelivered == []
    answer(user_code, start(user_code))
    assert user_code.reply_of(waiting) is not None, "it was sent to a replica that was known to be dead"
    assert user_code.sent[waiting.request_id] == 1


def test_user_code_that_the_request_never_reached_is_run_by_another_replica(user_code: GateWorld) -> None:
    dead = start(user_code)
    dead.paper.link._is_hung_up = True  # it died, and nobody has noticed yet
    (call,) = ask(user_code)
    assert call in dead.connection.outstanding.values()
    die(user_code, dead, KILL_9)
    assert user_code.gate.pending == 1
    fresh = start(user_code)
    assert not fresh.connection.is_exclusive, "it is no suspect"
    answer(user_code, fresh)
    assert user_code.reply_of(call) is not None


def test_a_suspect_that_never_reached_its_next_replica_is_still_one(world: GateWorld) -> None:
    doomed, serving = start(world), start(world)
    suspect, other = ask(world, 2)
    dead = start(world)
    dead.paper.link._is_hung_up = True  # it died, and nobody has noticed yet
    die(world, doomed)
    assert suspect in dead.connection.outstanding.values()
    die(world, dead)
    assert suspect.tries == 1, "the second never had it"
    assert list(serving.connection.outstanding.values()) == [other], "it would not be alone"
    answer(world, serving)
    assert list(serving.connection.outstanding.values()) == [suspect]


def test_a_replica_that_hangs_is_reported_though_it_is_retired(world: GateWorld) -> None:
    hanging = start(world)
    ask(world)
    world.loop.act(lambda: world.retire(hanging))
    world.loop.advance(4 * NS_PER_S)
    assert world.listener.overdue == [hanging.info.id]


def test_whoever_is_turned_away_before_its_body_is_read_wakes_the_model_too(world: GateWorld) -> None:
    ask(world, QUEUE)
    pokes = world.listener.pokes
    with pytest.raises(QueueFull):
        world.loop.act(world.gate.check_queue)
    assert world.listener.pokes == pokes + 1
    demand = world.router.demand(KEY, world.loop.now_ns)
    assert (demand.arrivals, demand.turned_away) == (QUEUE + 1, 1)


def test_a_revision_removed_too_early_answers_what_is_inside_and_is_forgotten_with_its_last_replica(
    world: GateWorld,
) -> None:
    one, other = start(world), start(world)
    answered, lost = ask(world, 2)
    world.loop.act(lambda: world.router.remove_revision(KEY))
    answer(world, one)
    die(world, one)
    die(world, other)
    assert world.reply_of(answered) is not None
    assert isinstance(lost.outcome, ReplicaLost), "no replica of a removed revision will come: do not wait for one"
    assert world.router.demand(KEY, world.loop.now_ns).pending == 0
    assert KEY not in world.router._gates
    world.loop.act(lambda: world.router.fail_pending(KEY, ReplicaLost("nobody is left to hear this")))


@dataclass
class Slots:
    in_flight: int
    is_exclusive: bool = False

    @property
    def is_empty(self) -> bool:
        return not self.in_flight


def test_suspects_get_an_empty_replica_or_spare_one_and_never_a_second_while_others_wait() -> None:
    busy, busier, empty, served = Slots(1), Slots(2), Slots(0), Slots(1, is_exclusive=True)
    for others_wait in (True, False):
        assert pick_alone([busier, empty, busy], others_wait=others_wait) == (empty, None)
        assert pick_alone([busier, busy], others_wait=others_wait) == (None, busy)
        assert pick_alone([busy, served], others_wait=others_wait) == (None, None)
    assert pick_alone([served, empty], others_wait=True) == (None, None)
    assert pick_alone([served, empty], others_wait=False) == (empty, None)


class Silent:
    def frames_received(self, frames: list[Frame]) -> None: ...

    def link_lost(self, reason: str) -> None: ...


async def test_a_link_keeps_the_frames_that_its_dead_peer_cannot_have_read() -> None:
    near, far = socket.socketpair()
    link = await FrameLink.open(near, Silent())
    read, unread = pack(Kind.REQUEST, 1, b"a"), pack(Kind.REQUEST, 2, b"b")
    link.send(read, at_once=True)
    assert not link.has_ended
    far.close()
    link.send(unread)
    await asyncio.sleep(0)
    assert (link.has_ended, link.undelivered) == (True, [unread])
    link.send(read)
    link.close()
    link.send(unread)
    assert link.undelivered == [unread, read, unread]
