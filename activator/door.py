"""The HTTP server: accepts connections, and at the end sees them out.

It sleeps on events instead of waking ten times a second as uvicorn's does: a platform at rest uses no CPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from activator.crowd import Crowd
from activator.limits import Limits
from activator.server import FrontDoorProtocol, HotPath

_BACKLOG = 4096
_LAST_ANSWERS_S = 1.0
"""Remains behind the drain timeout for the answers that say that time is up."""


class FrontDoor:
    """Serves one ASGI app on given sockets until `stop`."""

    def __init__(self, app: Any, hot_path: HotPath | None = None, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._hot_path = hot_path
        self._config = uvicorn.Config(
            app,
            http=FrontDoorProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
        )
        self._config.load()
        self._state = ServerState()
        self.connections: set[FrontDoorProtocol] = self._state.connections  # type: ignore[assignment]
        self.crowd = Crowd(self.limits, self.connections)
        self._stopping = asyncio.Event()

    async def run_until_stopped(self, sockets: list[socket.socket], drain_timeout_s: float) -> None:
        """Accept on `sockets`; after `stop`, finish what is in flight for at most `drain_timeout_s`, and a second."""
        loop = asyncio.get_running_loop()
        servers = [await loop.create_server(self.connection, sock=sock, backlog=_BACKLOG) for sock in sockets]
        try:
            await self._stopping.wait()
            await self._drain(drain_timeout_s, servers, sockets)
        finally:
            _close(servers, sockets)

    def stop(self) -> None:
        """Let answers under way finish, tell who comes meanwhile to come back later, then close all."""
        self._stopping.set()

    def connection(self) -> FrontDoorProtocol:
        """Return the protocol of a new connection."""
        return FrontDoorProtocol(
            self._config, self._state, {}, hot_path=self._hot_path, crowd=self.crowd, limits=self.limits
        )

    async def _accept_rest(self, sockets: list[socket.socket]) -> None:
        """Take the connections that were made but not accepted: they would be reset with the listener."""
        loop = asyncio.get_running_loop()
        for sock in sockets:
            with contextlib.suppress(OSError):  # BlockingIOError: no more; or no descriptor left for one
                while True:
                    connection, _ = sock.accept()
                    connection.setblocking(False)
                    await loop.connect_accepted_socket(self.connection, connection)

    async def _drain(self, timeout_s: float, servers: list[asyncio.Server], sockets: list[socket.socket]) -> None:
        """Answer what is asked; requests half there, and answers that nobody takes, are waited for a little.

        The listeners stay open for as long as somebody is waited for: who comes then hears when to come back.
        """
        self.crowd.is_draining = True
        for connection in self.connections:
            connection.shutdown()
        loop = asyncio.get_running_loop()
        grace = loop.call_later(min(timeout_s, self.limits.drain_grace_s), self._end_grace)
        try:
            async with asyncio.timeout(timeout_s + _LAST_ANSWERS_S):
                await self.crowd.finished()
                await self._accept_rest(sockets)
                _close(servers, sockets)
                grace.cancel()
                grace = loop.call_later(min(timeout_s, self.limits.drain_grace_s), self._end_grace)
                await self.crowd.finished()
                for connection in list(self.connections):
                    connection.transport.close()
                await self.crowd.emptied()
                if self._state.tasks:
                    await asyncio.wait(self._state.tasks)
        except TimeoutError:
            for connection in list(self.connections):
                connection.transport.abort()
            if self._state.tasks:  # they hear that their clients are gone
                await asyncio.wait(self._state.tasks, timeout=_LAST_ANSWERS_S)
        finally:
            grace.cancel()

    def _end_grace(self) -> None:
        for connection in list(self.connections):
            connection.end_grace()


def _close(servers: list[asyncio.Server], sockets: list[socket.socket]) -> None:
    for server in servers:
        server.close()
    for sock in sockets:
        sock.close()


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
