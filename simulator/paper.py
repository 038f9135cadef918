"""A replica on paper: its link and its far end, in memory, on the loop of whoever plays it.

The platform's side is the real one: whoever holds a `PaperLink` cannot tell it from a `FrameLink`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from serve.core.clock import Clock
from serve.core.frames import (
    Frame,
    FrameParser,
    Kind,
    RequestHead,
    ResponseHead,
    Usage,
    pack_response,
    unpack_request,
)
from serve.core.link import FrameReceiver
from serve.core.meter import BusyMeter

STATUS_CANCELLED = 499


class FarEnd(Protocol):
    """The replica's side of a link."""

    def frames_came(self, frames: list[Frame]) -> None: ...

    def closed(self) -> None:
        """The platform closed the connection."""


class PaperLink:
    """In-memory twin of `serve.core.link.FrameLink`. Owned by the running loop.

    Bytes in both directions arrive in a later turn of the loop than they were sent in, or after `delay_s`, in order,
    and are parsed as on a socket. What has not arrived when the connection closes is lost.
    """

    def __init__(self, receiver: FrameReceiver, far: FarEnd, delay_s: Callable[[], float] | None = None) -> None:
        self.receiver = receiver
        self.is_closed = False
        self.has_ended = False
        self.undelivered: list[bytes] = []
        self._far = far
        self._delay_s = delay_s
        self._loop = asyncio.get_running_loop()
        self._out, self._in = bytearray(), bytearray()
        self._far_parser, self._parser = FrameParser(), FrameParser()
        self._is_hung_up = False

    # The platform's end: `serve.core.link.Link`

    def send(self, frame: bytes, *, at_once: bool = False) -> None:  # noqa: ARG002 - there is no system call to save
        if self.is_closed or self.has_ended or self._is_hung_up:
            self.has_ended = True
            self.undelivered.append(frame)
            return
        if not self._out:
            self._later(self._deliver_out)
        self._out += frame

    def close(self) -> None:
        if self._shut():
            self._deliver_out()
            self._loop.call_soon(self._far.closed)
            self._loop.call_soon(self.receiver.link_lost, "closed by the platform")

    def read_rest(self) -> None:
        self.has_ended = True
        self._deliver_in()

    # The replica's end

    def say(self, data: bytes) -> None:
        """Send any bytes to the platform."""
        if self.is_closed or self._is_hung_up:
            return
        if not self._in:
            self._later(self._deliver_in)
        self._in += data

    def hang_up(self) -> None:
        """Close the far end: the platform reads what was said before, then the end."""
        if not self._is_hung_up:
            self._is_hung_up = True
            self._out.clear()
            self._later(self._deliver_in)

    # Within

    def _later(self, deliver: Callable[[], None]) -> None:
        delay_s = self._delay_s() if self._delay_s is not None else 0.0
        if delay_s:
            self._loop.call_later(delay_s, deliver)
        else:
            self._loop.call_soon(deliver)

    def _deliver_out(self) -> None:
        data, self._out = bytes(self._out), bytearray()
        if data:
            self._far.frames_came(self._far_parser.feed(data))

    def _deliver_in(self) -> None:
        data, self._in = bytes(self._in), bytearray()
        if self.is_closed:
            return
        if data and (frames := self._parser.feed(data)):
            self.receiver.frames_received(frames)
        if self._is_hung_up and self._shut():
            self.receiver.link_lost("the other side closed the connection")

    def _shut(self) -> bool:
        was_open = not self.is_closed
        self.is_closed = True
        return was_open


@dataclass(slots=True)
class Inside:
    """A request inside a replica on paper."""

    stream: int
    head: RequestHead
    body: bytes
    entered_ns: int
    ticket: int


class PaperReplica:
    """Takes requests, meters them as a real replica does, and answers when it is told to. A `FarEnd`.

    `on_request` hears of each request inside. One that is cancelled is answered at once, with 499, by a replica that
    `hears_cancel`: one in the middle of its run does not.
    """

    def __init__(
        self, clock: Clock, on_request: Callable[[Inside], None] | None = None, *, hears_cancel: bool = True
    ) -> None:
        self.link: PaperLink
        """Set by whoever connects it."""
        self.inside: dict[int, Inside] = {}
        """By stream, in order of arrival."""
        self.meter = BusyMeter()
        self.answered = 0
        self.is_closed = False
        self._clock = clock
        self.on_request = on_request
        self._hears_cancel = hears_cancel

    def connect(self, receiver: FrameReceiver) -> PaperLink:
        """Return the platform's end of a connection to this replica."""
        self.link = PaperLink(receiver, self)
        return self.link

    def answer(self, streams: Iterable[int], status: int = 200, body: bytes = b"{}") -> None:
        """Answer these requests in one send. Streams with nothing inside are passed over."""
        now_ns = self._clock.monotonic_ns()
        parts: list[bytes] = []
        for inside in [self.inside.pop(stream) for stream in streams if stream in self.inside]:
            share_ns = self.meter.leave(inside.ticket, 1, now_ns)
            self.answered += 1
            usage = Usage(
                entered_ns=inside.entered_ns,
                left_ns=now_ns,
                infer_ns=now_ns - inside.entered_ns,
                share_ns=share_ns,
                total_busy_ns=self.meter.total_busy_ns,
                total_share_ns=self.meter.total_share_ns,
                rows=1,
                batch_rows=1,
                answered=self.answered,
                executions=self.answered,
            )
            parts.append(pack_response(inside.stream, ResponseHead(status, 0, -1), body, usage))
        if parts:
            self.link.say(b"".join(parts))

    def frames_came(self, frames: list[Frame]) -> None:
        now_ns = self._clock.monotonic_ns()
        for frame in frames:
            if frame.kind == Kind.CANCEL and self._hears_cancel:
                self.answer([frame.stream], STATUS_CANCELLED, b"")
            elif frame.kind == Kind.REQUEST:
                head, body = unpack_request(frame.payload)
                ticket = self.meter.enter(1, now_ns)
                self.inside[frame.stream] = inside = Inside(frame.stream, head, bytes(body), now_ns, ticket)
                if self.on_request is not None:
                    self.on_request(inside)

    def closed(self) -> None:
        self.is_closed = True
