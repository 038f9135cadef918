"""The activator's end of one replica: calls out, answers in."""

from __future__ import annotations

import logging
from typing import Protocol

from activator.calls import Call
from serve.core.events import Event, EventError, Phase, decode_event
from serve.core.frames import (
    HEADER,
    Frame,
    FrameError,
    Kind,
    RequestHead,
    ResponseHead,
    Usage,
    pack,
    pack_request,
    unpack_response,
)
from serve.core.ids import ReplicaId
from serve.core.link import Link
from serve.core.scaling import ReplicaInfo

log = logging.getLogger(__name__)

_RESPONSE, _EVENT = int(Kind.RESPONSE), int(Kind.EVENT)
_OK, _FIRST_ERROR, _LAST_ERROR = 200, 400, 599
"""A replica answers or says why not: no interim status, no redirect, none that has no body."""

Answered = tuple[Call, ResponseHead, Usage, memoryview]


class AnswerSink(Protocol):
    """The gate, as its connections see it."""

    def answers_received(self, replica: ReplicaConnection, answers: list[Answered]) -> None: ...

    def shut(self, replica: ReplicaConnection) -> None:
        """Send it nothing new."""

    def connection_lost(self, replica: ReplicaConnection) -> None: ...


class EventSink(Protocol):
    """Who hears what a replica reports."""

    def replica_event(self, replica_id: ReplicaId, event: Event) -> None: ...


class ReplicaConnection:
    """Slots and outstanding calls of one replica. Owned by its gate, on the event loop. A `FrameReceiver`."""

    __slots__ = (
        "_events",
        "_is_lost",
        "_next_stream",
        "_sink",
        "cold_phases",
        "id",
        "in_flight",
        "info",
        "is_exclusive",
        "is_open",
        "is_overdue",
        "link",
        "outstanding",
    )

    def __init__(self, info: ReplicaInfo, sink: AnswerSink, events: EventSink) -> None:
        self.info = info
        self.id: ReplicaId = info.id
        self.link: Link | None = None
        self.is_open = False
        """Ready and not retired: new calls may go to it."""
        self.is_exclusive = False
        """A call that must be alone is inside."""
        self.is_overdue = False
        """It was reported for not coming back from a call."""
        self.in_flight = 0
        """Calls inside whose callers still wait: taken slots."""
        self.outstanding: dict[int, Call] = {}
        """Every call inside by stream, in order of dispatch; includes calls whose callers left."""
        self.cold_phases: dict[str, int] = {}
        self._sink = sink
        self._events = events
        self._next_stream = 1
        self._is_lost = False

    @property
    def is_empty(self) -> bool:
        """Nothing is inside, not even a call whose caller left: that one may still kill it."""
        return not self.outstanding

    def dispatch(self, call: Call, now_ns: int) -> None:
        """Send a call inside and take a slot."""
        assert self.link is not None
        stream = self._next_stream
        self._next_stream = stream + 1 if stream < 0xFFFF_FFFF else 1
        is_at_rest = not self.outstanding
        self.outstanding[stream] = call
        self.in_flight += 1
        self.is_exclusive = call.tries > 0
        call.dispatched_ns = now_ns
        timeout_us = max(1, (call.deadline_ns - now_ns) // 1000)
        self.link.send(
            pack_request(stream, RequestHead(call.codec, call.request_id, call.json_length, timeout_us), call.body),
            at_once=is_at_rest,
        )

    def abandon(self, call: Call) -> bool:
        """The caller left: free its slot and tell the replica. Return False if the call is not inside."""
        for stream, inside in self.outstanding.items():
            if inside is call:
                self.in_flight -= 1
                if self.link is not None:
                    self.link.send(pack(Kind.CANCEL, stream))
                return True
        return False

    def oldest_inside_ns(self) -> int | None:
        """Return when the oldest unanswered call was sent inside; None where nothing is."""
        for call in self.outstanding.values():
            return call.dispatched_ns
        return None

    def overdue(self, now_ns: int, execution_timeout_ns: int) -> list[Call]:
        """Return the calls inside that must be refused now."""
        return [
            call
            for call in self.outstanding.values()
            if not call.is_left and call.inside_until_ns(execution_timeout_ns) <= now_ns
        ]

    def is_stuck(self, now_ns: int, execution_timeout_ns: int) -> bool:
        """Return whether the replica does not come back from a call, and that was not reported yet."""
        oldest_ns = self.oldest_inside_ns()
        return not self.is_overdue and oldest_ns is not None and oldest_ns + execution_timeout_ns <= now_ns

    def deadlines_ns(self, execution_timeout_ns: int) -> list[int]:
        """Return every instant at which one of the above may change."""
        found = [call.inside_until_ns(execution_timeout_ns) for call in self.outstanding.values() if not call.is_left]
        oldest_ns = self.oldest_inside_ns()
        if oldest_ns is not None and not self.is_overdue:
            found.append(oldest_ns + execution_timeout_ns)
        return found

    def phases_of(self, call: Call, now_ns: int) -> dict[str, int]:
        """Return where the time of a cold call went that is answered at `now_ns`, ns by phase."""
        queue_ns = max(0, self.info.assigned_ns - call.received_ns)
        infer_ns = now_ns - call.dispatched_ns
        return {Phase.QUEUE.value: queue_ns, **self.cold_phases, Phase.INFER.value: infer_ns}

    def drain_outstanding(self) -> tuple[list[Call], list[Call]]:
        """It is gone: take every call, in order of dispatch, as (those that were inside, those that never arrived).

        Of those that never arrived, only the ones whose callers still wait.
        """
        undelivered = set()
        for frame in self.link.undelivered if self.link is not None else ():
            _, kind, _, _, stream = HEADER.unpack_from(frame)
            if kind == Kind.REQUEST:
                undelivered.add(stream)
        inside = [call for stream, call in self.outstanding.items() if stream not in undelivered]
        never_sent = [call for stream, call in self.outstanding.items() if stream in undelivered and not call.is_left]
        self.outstanding.clear()
        self.in_flight = 0
        self.is_exclusive = False
        return inside, never_sent

    # FrameReceiver

    def frames_received(self, frames: list[Frame]) -> None:
        answers: list[Answered] = []
        if self.link is not None and self.link.has_ended:
            self._sink.shut(self)  # the slots that are freed now are no slots any more
        for frame in frames:
            if frame.kind == _RESPONSE:
                answer = self._answer(frame)
                if answer is None:
                    self._protocol_error("an answer that nothing asked for, that is none, or one of several parts")
                    break
                answers.append(answer)
            elif frame.kind == _EVENT:
                self._event(frame.payload)
            else:
                self._protocol_error(f"frame kind {frame.kind}")
                break
        if answers:
            if self.is_exclusive and not self.outstanding:
                self.is_exclusive = False
            self._sink.answers_received(self, answers)

    def link_lost(self, reason: str) -> None:
        if self._is_lost:
            return
        self._is_lost = True
        log.debug("link of %s lost: %s", self.id, reason)
        self._sink.connection_lost(self)

    def _answer(self, frame: Frame) -> Answered | None:
        """Take the call that this answers; None, and every call where it was, if it answers nothing."""
        try:
            head, usage, body = unpack_response(frame)
        except FrameError:
            return None
        if usage is None or not (head.status == _OK or _FIRST_ERROR <= head.status <= _LAST_ERROR):
            return None
        call = self.outstanding.pop(frame.stream, None)
        if call is None:
            return None
        if not call.is_left:
            self.in_flight -= 1
        return call, head, usage, body

    def _event(self, payload: memoryview) -> None:
        try:
            event = decode_event(payload)
        except EventError as error:
            self._protocol_error(str(error))
            return
        self._events.replica_event(self.id, event)

    def _protocol_error(self, what: str) -> None:
        log.error("replica broke the protocol", extra={"replica": self.id, "error": what})
        if self.link is not None:
            self.link.close()
        self.link_lost(what)  # now: what came before the error frees slots, and nothing may be sent here any more
