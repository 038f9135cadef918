"""The HTTP protocol in front of everything: uvicorn's, with what it lacks.

An answer leaves in one write without passing header lists through ASGI; a handler hears at once that its client left;
small inference requests take the hot path, without a task, a scope or an event each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from activator.answer import write_answer
from activator.crowd import Crowd
from activator.limits import PIPELINED, Limits
from activator.watch import WatchedReader
from serve.core.errors import BadRequest, Draining, QueueFull, ServeError

CYCLE = "serve.cycle"
"""Key in the ASGI scope: the cycle of this request, for `respond` and `on_leave`."""
ON_LEAVE = "serve.on_leave"
"""Key in the ASGI scope: a callable for when the client goes away before its answer."""


class HotRequest(Protocol):
    """A request on the hot path. Stands in for uvicorn's cycle while it is the connection's current one."""

    response_complete: bool
    keep_alive: bool

    def body_received(self, part: bytes) -> None: ...

    def wait_for_body(self) -> None:
        """Not all of the body came with the last read."""

    def complete(self) -> None:
        """The whole request is there."""

    def give_up_body(self, error: ServeError) -> None:
        """The rest of the body will not be read: answer with `error`."""

    def client_left(self) -> None: ...


class HotPath(Protocol):
    """Takes the requests that need nothing but speed."""

    def admit(self, connection: FrontDoorProtocol) -> HotRequest | None:
        """Take the request whose head was just read, or return None: then it goes through ASGI."""


class FrontDoorProtocol(WatchedReader):
    """One client connection."""

    def __init__(self, *args: Any, hot_path: HotPath | None, crowd: Crowd, limits: Limits, **options: Any) -> None:
        super().__init__(*args, limits=limits, **options)
        self._hot_path = hot_path
        self._crowd = crowd
        self._hot: HotRequest | None = None
        """The hot request whose body is being read."""
        self._active: RequestResponseCycle | HotRequest | None = None

    # Parser callbacks: what uvicorn prepares for ASGI is prepared only for requests that go there.

    def head_complete(self) -> None:
        if self._is_deaf:
            return  # it came in one read with a request whose answer was the last here
        if self._hot_path is not None and (self.cycle is None or self.cycle.response_complete):
            hot = self._hot_path.admit(self)
            if hot is not None:
                self._hot = self._active = hot
                self.cycle = hot  # type: ignore[assignment]
                return
        self.check_head()
        if len(self.pipeline) >= PIPELINED:
            raise QueueFull(
                f"More than {PIPELINED} requests wait on this connection: wait for answers before sending more",
                retry_after_s=1.0,
            )
        url, headers = self.url, self.headers
        HttpToolsProtocol.on_message_begin(self)
        self.url, self.headers[:] = url, headers
        self.expect_100_continue = self.parser.get_http_version() != "1.0" and any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in headers
        )
        HttpToolsProtocol.on_headers_complete(self)
        if self._crowd.is_draining:
            self.cycle.keep_alive = False
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope[CYCLE] = self.cycle

    def on_body(self, body: bytes) -> None:
        self._is_progress = True
        if self._hot is not None:
            self._hot.body_received(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_partial = False
        hot, self._hot = self._hot, None
        if hot is not None:
            hot.complete()
        elif not self.parser.should_upgrade():
            super().on_message_complete()

    def _part_received(self) -> None:
        super()._part_received()
        if self._hot is not None:
            self._hot.wait_for_body()

    def give_up_body(self, error: ServeError) -> None:
        hot, self._hot = self._hot, None
        if hot is not None:
            hot.give_up_body(error)
            return
        cycle = self.cycle
        if cycle is not self._active:
            self.pipeline.popleft()  # the last that came
        elif cycle.response_started:
            self.transport.abort()
            return
        else:
            cycle.response_started = cycle.response_complete = True
            self._dismiss(cycle)
        self.say_at_last(error)

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.rest()
        if self._crowd.is_draining:
            self.shutdown()
        self._crowd.came(self)

    @property
    def is_owing(self) -> bool:
        return self._active is not None and not self._active.response_complete

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether the connection stays open for answers: the client sent what it had to send."""
        if self.transport.is_closing() or not self.is_owing:
            return False
        if self._is_partial and not self._is_in_head and self.cycle is self._active:
            return False  # it cannot be answered any more
        if self._is_partial:
            self.refuse(BadRequest("The connection ended in the midst of this request: send all of it"))
        if self._last_words is None:
            self.cycle.keep_alive = False
        self._is_half_closed = True
        if not self._ping_s:
            self.ping()
        return True

    @property
    def may_be_pinged(self) -> bool:
        active = self._active
        is_silent = not (isinstance(active, RequestResponseCycle) and active.response_started)
        return is_silent and self.parser.get_http_version() != "1.0"

    def connection_lost(self, exc: Exception | None) -> None:
        active = self._active
        if isinstance(active, RequestResponseCycle):
            super().connection_lost(exc)
            if not active.response_complete:
                self._dismiss(active)
        else:
            self.cycle = None  # type: ignore[assignment]
            super().connection_lost(exc)
            if active is not None and not active.response_complete:
                active.client_left()
        self.unwatch()
        self.pipeline.clear()
        self._active = None
        self._crowd.left(self)

    def _dismiss(self, cycle: RequestResponseCycle) -> None:
        """Tell a handler that its client is gone."""
        cycle.disconnected = True
        cycle.message_event.set()
        on_leave: Callable[[], None] | None = cycle.scope.get(ON_LEAVE)  # type: ignore[assignment]
        if on_leave is not None:
            on_leave()

    def on_response_complete(self) -> None:
        if isinstance(self._active, RequestResponseCycle):
            self._active.body = bytearray()  # nobody read a refused one: it would rest with the connection
        if self.transport.is_closing():
            if self.transport.get_write_buffer_size():
                self.look_within(self.stall_s)
        elif self._active is not None and not self._active.keep_alive:
            self.end()
        elif self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._last_words is not None:
            self._say_last_words(self._last_words)
        else:
            self.flow.resume_reading()
            self.rest()

    # uvicorn's own keep-alive timer is not used.

    def _unset_keepalive_if_required(self) -> None:
        pass

    # Answers that are not taken

    def pause_writing(self) -> None:
        super().pause_writing()
        self.look_within(self.stall_s)
        self._crowd.reads_slowly(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._crowd.reads_on(self)

    # Being told to go

    @property
    def is_resting(self) -> bool:
        """Whether the connection may be closed for another's sake: nothing is owed, and no answer is on its way."""
        is_leaving = self._is_deaf or self.transport.is_closing()
        return not (is_leaving or self.is_owing or self.transport.get_write_buffer_size())

    @property
    def is_asking(self) -> bool:
        """Whether a part of a request is there."""
        return self._is_partial and not self.transport.is_closing()

    def turn_away(self, error: ServeError) -> None:
        """Answer what will be asked here before it comes."""
        self._is_partial = True  # so that it is read, and the answer seen
        self.say_at_last(error)

    def shutdown(self) -> None:
        """What is asked gets its answer, and no more is asked here."""
        self.stall_s = min(self.stall_s, self.limits.drain_grace_s)
        is_unread = self.transport.get_write_buffer_size() > 0
        if is_unread:
            self._look_at_answer(self.loop.time(), self.stall_s)
            self.look_within(self.stall_s)
        if self.is_owing:
            self.cycle.keep_alive = False
        elif is_unread:
            self.transport.close()

    def end_grace(self) -> None:
        """A request that is not wholly there is told so."""
        if self._is_partial and not self._is_deaf:
            error = Draining("The platform is shutting down; retry in a moment", retry_after_s=1.0)
            if self._is_in_head:
                self.refuse(error)
            else:
                self.give_up_body(error)


async def respond(cycle: RequestResponseCycle, status: int, headers: bytes, body: bytes | memoryview) -> None:
    """Write a whole answer at once. `headers`: lines that end in CRLF, without content-length, date and connection."""
    if cycle.flow.write_paused and not cycle.disconnected:
        await cycle.flow.drain()
    if cycle.disconnected or cycle.response_started:
        return
    cycle.response_started = True
    write_answer(
        cycle.transport,
        status,
        headers,
        b"" if cycle.scope["method"] == "HEAD" else body,
        content_length=len(body),
        keep_alive=cycle.keep_alive,
    )
    cycle.response_complete = True
    cycle.message_event.set()
    cycle.on_response()
