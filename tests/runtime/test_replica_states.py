"""Any sequence of what a caller can do ends well: every request is answered exactly once, and accounted to the ns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule, run_state_machine_as_test

from serve.core.events import Drained
from serve.core.frames import pack_request
from tests.runtime.peer import DRAIN, Peer, cancel, head, in_parts, request, scripted

MAX_BATCH_ROWS = 4
RAISES, REJECTED = 13, 14
SCRIPT: dict[str, Any] = {
    "max_batch_rows": MAX_BATCH_ROWS,
    "run_s": 0.0005,
    "on_value": {str(RAISES): "raise", str(REJECTED): "reject"},
}

first_values = st.sampled_from([1, 2, 3, RAISES, REJECTED])


def expected_status(value: float) -> int:
    return {RAISES: 500, REJECTED: 400}.get(int(value), 200)


@pytest.fixture(name="peer", scope="module")
def fixture_peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    folder = tmp_path_factory.mktemp("replica")
    with Peer(folder) as peer:
        peer.load(scripted(folder, **SCRIPT))
        yield peer


class Callers(RuleBasedStateMachine):
    """Many callers of one replica that lives through all examples. Stream numbers are never used again."""

    streams = Bundle("streams")
    begun = Bundle("begun")
    peer: Peer
    next_stream = 1

    def __init__(self) -> None:
        super().__init__()
        self.expected: dict[int, set[int]] = {}
        """Statuses that each stream may be answered with."""
        self.rows: dict[int, tuple[float, ...]] = {}
        self.unfinished: dict[int, list[bytes]] = {}
        """Frames that still belong to requests whose body was begun."""

    def new_stream(self, *statuses: int) -> int:
        stream = type(self).next_stream
        type(self).next_stream += 1
        self.expected[stream] = set(statuses)
        return stream

    @rule(target=streams, value=first_values, rows=st.integers(1, 6))
    def ask(self, value: int, rows: int) -> int:
        stream = self.new_stream(expected_status(value))
        self.rows[stream] = (value, *[0.0] * (rows - 1))
        self.peer.send(request(stream, *self.rows[stream]))
        return stream

    @rule(target=streams, values=st.lists(first_values, min_size=2, max_size=8))
    def ask_together(self, values: list[int]) -> int:
        frames = []
        for value in values:
            stream = self.new_stream(expected_status(value))
            self.rows[stream] = (value,)
            frames.append(request(stream, value))
        self.peer.send(*frames)
        return stream

    @rule(target=streams, body=st.sampled_from([b"", b"{", b"[]", b'{"inputs":[]}', b'{"inputs":[{"name":"x"}]}']))
    def ask_nonsense(self, body: bytes) -> int:
        stream = self.new_stream(400)
        self.peer.send(pack_request(stream, head(), body))
        return stream

    @rule(target=streams)
    def ask_too_late(self) -> int:
        stream = self.new_stream(200, 503)
        self.rows[stream] = (1.0,)
        self.peer.send(request(stream, 1, timeout_us=1))
        return stream

    @rule(target=begun, value=first_values)
    def begin(self, value: int) -> int:
        stream = self.new_stream(expected_status(value))
        self.rows[stream] = (value,)
        first, *rest = in_parts(stream, value)
        self.peer.send(first)
        self.unfinished[stream] = rest
        return stream

    @rule(target=streams, stream=consumes(begun))
    def finish(self, stream: int) -> int:
        self.peer.send(*self.unfinished.pop(stream, []))
        return stream

    @rule(stream=begun)
    def leave_between_the_parts(self, stream: int) -> None:
        if self.unfinished.pop(stream, None) is not None:
            self.expected[stream] = {499}
        self.peer.send(cancel(stream))

    @rule(stream=streams)
    def leave(self, stream: int) -> None:
        self.expected[stream].add(499)
        self.peer.send(cancel(stream))

    @rule(stream=streams)
    def wait(self, stream: int) -> None:
        self.peer.read_until(lambda: stream in self.peer.answers)

    def teardown(self) -> None:
        for frames in self.unfinished.values():
            self.peer.send(*frames)
        self.peer.read_until(lambda: self.expected.keys() <= self.peer.answers.keys())
        for stream, statuses in self.expected.items():
            answer = self.peer.answers[stream]
            assert answer.status in statuses
            if answer.status == 200:
                doubled = [item for row in self.rows[stream] for item in (2 * row, 0)]
                assert answer.data == doubled
                assert answer.usage.rows == len(self.rows[stream])
                assert answer.usage.batch_rows <= max(MAX_BATCH_ROWS, answer.usage.rows)
        check_shares(self.peer)


def check_shares(peer: Peer) -> None:
    """Nothing is inside now: what all answers were charged is what the replica was busy."""
    usages = sorted((answer.usage for answer in peer.answers.values()), key=lambda usage: usage.answered)
    if usages:
        assert [usage.answered for usage in usages] == list(range(1, len(usages) + 1))
        assert sum(usage.share_ns for usage in usages) == usages[-1].total_busy_ns == usages[-1].total_share_ns


def test_any_callers_are_all_answered_once_and_accounted(peer: Peer) -> None:
    Callers.peer = peer
    run_state_machine_as_test(Callers, settings=settings(max_examples=40, stateful_step_count=30, deadline=None))


acts = st.lists(st.sampled_from(["ask", "begin", "finish", "leave", "nonsense", "fail"]), max_size=8)


@settings(max_examples=6, deadline=None)
@given(before=acts, after=acts)
def test_whenever_a_drain_comes_what_was_inside_is_done_and_the_rest_refused(
    before: list[str], after: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("drain")
    with Peer(folder) as peer:
        peer.load(scripted(folder, **SCRIPT))
        frames: list[bytes] = []
        unfinished: dict[int, bytes] = {}
        inside: dict[int, bool] = {}
        for act in [*before, "drain", *after, *["finish"] * len(before)]:
            stream = len(inside) + 1
            if act == "drain":
                frames.append(DRAIN)
            elif act in ("ask", "fail"):
                frames.append(request(stream, RAISES if act == "fail" else 1))
                inside[stream] = DRAIN not in frames
            elif act == "nonsense":
                frames.append(pack_request(stream, head(), b"?"))
                inside[stream] = DRAIN not in frames
            elif act == "begin":
                first, *rest = in_parts(stream, 1)
                frames.append(first)
                unfinished[stream] = b"".join(rest)
                inside[stream] = DRAIN not in frames
            elif act == "finish" and unfinished:
                frames.append(unfinished.pop(min(unfinished)))
            elif act == "leave" and inside:
                frames.append(cancel(max(inside)))
                unfinished.pop(max(inside), None)
        peer.send(*frames)
        assert peer.exit_code() == 0
        assert peer.answers.keys() == inside.keys()
        for stream, was_inside in inside.items():
            assert (peer.answers[stream].status == 503) is not was_inside
        (drained,) = peer.events_of(Drained)
        assert drained.total_busy_ns == sum(answer.usage.share_ns for answer in peer.answers.values())
        check_shares(peer)
