"""The HTTP server in front of everything: uvicorn's protocol, with what it lacks.

An answer leaves in one write without passing header lists through ASGI; a handler hears at once that its client left;
small inference requests take the hot path, without a task, a scope or an event each; and the server sleeps on an
event instead of waking ten times a second, so that a platform at rest uses no CPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import socket
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from activator.answer import write_answer
from activator.reading import RequestReader

CYCLE = "serve.cycle"
"""Key in the ASGI scope: the cycle of this request, for `respond` and `on_leave`."""
ON_LEAVE = "serve.on_leave"
"""Key in the ASGI scope: a callable for when the client goes away before its answer."""
KEEP_ALIVE_S = 75
_BACKLOG = 4096


class HotRequest(Protocol):
    """A request on the hot path. Stands in for uvicorn's cycle while it is the connection's current one."""

    response_complete: bool

    def body_received(self, part: bytes) -> None: ...

    def wait_for_body(self) -> None:
        """Not all of the body came with the last read."""

    def complete(self) -> None:
        """The whole request is there."""

    def client_left(self) -> None: ...


class HotPath(Protocol):
    """Takes the requests that need nothing but speed."""

    def admit(self, connection: FrontDoorProtocol) -> HotRequest | None:
        """Take the request whose head was just read, or return None: then it goes through ASGI."""


class FrontDoorProtocol(RequestReader):
    """One client connection."""

    def __init__(self, *args: Any, hot_path: HotPath | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._hot_path = hot_path
        self._hot: HotRequest | None = None
        """The hot request whose body is being read."""
        self._active: RequestResponseCycle | HotRequest | None = None
        self._idle_since_s = 0.0
        self._unread_bytes = 0
        """What the client had not taken of its answer when that was last looked at."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._hot is not None:
            self._hot.wait_for_body()

    # Parser callbacks: what uvicorn prepares for ASGI is prepared only for requests that go there.

    def head_complete(self) -> None:
        if self._hot_path is not None and (self.cycle is None or self.cycle.response_complete):
            hot = self._hot_path.admit(self)
            if hot is not None:
                self._hot = self._active = hot
                self.cycle = hot  # type: ignore[assignment]
                return
        url, headers = self.url, self.headers
        if httptools.parse_url(url).path is None:
            raise httptools.HttpParserInvalidURLError("a URL without a path")  # uvicorn relies on one
        HttpToolsProtocol.on_message_begin(self)
        self.url, self.headers[:] = url, headers
        self.expect_100_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in headers
        )
        HttpToolsProtocol.on_headers_complete(self)
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope[CYCLE] = self.cycle

    def on_body(self, body: bytes) -> None:
        self._is_progress = True
        if self._hot is not None:
            self._hot.body_received(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        hot, self._hot = self._hot, None
        if hot is not None:
            hot.complete()
        elif not self.parser.should_upgrade():
            super().on_message_complete()

    # Connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._rest()

    @property
    def is_owing(self) -> bool:
        return self._active is not None and not self._active.response_complete

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        active = self._active
        if isinstance(active, RequestResponseCycle):
            super().connection_lost(exc)
            if not active.response_complete:
                active.disconnected = True
                active.message_event.set()
                on_leave: Callable[[], None] | None = active.scope.get(ON_LEAVE)  # type: ignore[assignment]
                if on_leave is not None:
                    on_leave()
        else:
            self.cycle = None  # type: ignore[assignment]
            super().connection_lost(exc)
            if active is not None and not active.response_complete:
                active.client_left()
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        self.pipeline.clear()
        self._active = None

    def on_response_complete(self) -> None:
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._rest()

    def _rest(self) -> None:
        """Nothing is asked now: the time begins in which the next request should come."""
        self._idle_since_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_after(self.timeout_keep_alive)

    # One keep-alive timer a connection, looked at when it fires, instead of one set and cancelled for every request.

    def _unset_keepalive_if_required(self) -> None:
        pass

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        idle_s = self.loop.time() - self._idle_since_s
        is_busy = self.cycle is not None and not self.cycle.response_complete
        if not is_busy and idle_s < self.timeout_keep_alive - 0.01:
            self._look_after(self.timeout_keep_alive - idle_s)
            return
        unread_bytes, before_bytes = self.transport.get_write_buffer_size(), self._unread_bytes
        self._unread_bytes = unread_bytes
        if unread_bytes and unread_bytes == before_bytes:
            self.transport.abort()  # nothing of the answer was taken all this time
        elif unread_bytes or (is_busy and not self.transport.is_closing()):
            self._look_after(self.timeout_keep_alive)
        elif not self.transport.is_closing():
            self.transport.close()

    def _look_after(self, delay_s: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(delay_s, self.timeout_keep_alive_handler)


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


class FrontDoor(uvicorn.Server):
    """Serves one ASGI app on given sockets until `stop`. Signals are the platform's business, not this server's."""

    def __init__(self, app: Any, hot_path: HotPath | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=functools.partial(FrontDoorProtocol, hot_path=hot_path),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=True,
                backlog=_BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )
        self._stopping = asyncio.Event()

    async def run_until_stopped(self, sockets: list[socket.socket], drain_timeout_s: float) -> None:
        """Accept on `sockets`; after `stop`, finish what is in flight for at most `drain_timeout_s`.

        A second more remains for the answers that say so when time is up.
        """
        self.config.timeout_graceful_shutdown = math.ceil(drain_timeout_s) + 1
        await self.serve(sockets=sockets)

    def stop(self) -> None:
        """Close the listeners and idle connections; answers under way may finish."""
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        await self._stopping.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raise OSError (EADDRINUSE: the port is busy)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
