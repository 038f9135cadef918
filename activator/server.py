"""The HTTP server in front of everything: uvicorn's protocol, with three things it lacks.

An answer leaves in one write without passing header lists through ASGI; a handler hears at once that its client left;
and the server sleeps on an event instead of ten times a second, so that a platform at rest uses no CPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from serve.core.clock import NS_PER_S, SystemClock

CYCLE = "serve.cycle"
"""Key in the ASGI scope: the cycle of this request, for `respond` and `on_leave`."""
ON_LEAVE = "serve.on_leave"
"""Key in the ASGI scope: a callable for when the client goes away before its answer."""
KEEP_ALIVE_S = 75
_BACKLOG = 4096


class FrontDoorProtocol(HttpToolsProtocol):
    """One client connection."""

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        scope: dict[str, Any] = self.scope  # type: ignore[assignment]
        scope[CYCLE] = self.cycle

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        active: RequestResponseCycle | None = getattr(self, "_active", None)
        if active is not None and not active.response_complete:
            active.disconnected = True
            active.message_event.set()
            on_leave: Callable[[], None] | None = active.scope.get(ON_LEAVE)  # type: ignore[assignment]
            if on_leave is not None:
                on_leave()
        self.pipeline.clear()


async def respond(cycle: RequestResponseCycle, status: int, headers: bytes, body: bytes | memoryview) -> None:
    """Write a whole answer at once. `headers`: lines that end in CRLF, without content-length, date and connection."""
    if cycle.flow.write_paused and not cycle.disconnected:
        await cycle.flow.drain()
    if cycle.disconnected or cycle.response_started:
        return
    cycle.response_started = True
    head = b"%b%bcontent-length: %d\r\ndate: %b\r\n%b\r\n" % (
        STATUS_LINE[status],
        headers,
        len(body),
        _DATE.value(),
        b"" if cycle.keep_alive else b"connection: close\r\n",
    )
    if cycle.scope["method"] == "HEAD":
        cycle.transport.write(head)
    elif len(body) < 65_536:
        cycle.transport.write(head + body)
    else:
        cycle.transport.writelines((head, body))
    cycle.response_complete = True
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()


class _DateHeader:
    """The Date header's value, made once a second."""

    def __init__(self) -> None:
        self._made_s = 0
        self._value = b""

    def value(self) -> bytes:
        now_s = int(_CLOCK.wall_ns() / NS_PER_S)
        if now_s != self._made_s:
            self._made_s = now_s
            self._value = formatdate(now_s, usegmt=True).encode()
        return self._value


_CLOCK = SystemClock()
_DATE = _DateHeader()


class FrontDoor(uvicorn.Server):
    """Serves one ASGI app on given sockets until `stop`. Signals are the platform's business, not this server's."""

    def __init__(self, app: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=FrontDoorProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=True,
                backlog=_BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )
        self._stopping = asyncio.Event()

    async def run_until_stopped(self, sockets: list[socket.socket], drain_timeout_s: float) -> None:
        """Accept on `sockets`; after `stop`, finish what is in flight for at most `drain_timeout_s`."""
        self.config.timeout_graceful_shutdown = max(1, round(drain_timeout_s))
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
