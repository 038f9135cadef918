"""The asyncio end of a replica's socket: frames in, frames out, one write per loop turn."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Protocol, cast

from serve.core.frames import Frame, FrameError, FrameParser

log = logging.getLogger(__name__)


class FrameReceiver(Protocol):
    """Who listens on a link. Called on the loop; must not block and must not raise."""

    def frames_received(self, frames: list[Frame]) -> None:
        """All frames that one read completed, in order."""

    def link_lost(self, reason: str) -> None:
        """No more frames will come, once. `reason` is a sentence fragment for logs."""


class FrameLink(asyncio.Protocol):
    """One connection to one replica. Owned by the event loop it was opened on.

    `send` gathers; one `call_soon` per loop turn writes everything of that turn with a single system call. What waits
    here is bounded by its users: at most a replica's concurrency of requests is ever outstanding on its link.
    """

    def __init__(self, receiver: FrameReceiver) -> None:
        self.receiver = receiver
        self.is_closed = False
        self._parser = FrameParser()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._outgoing: list[bytes] = []
        self._flush_scheduled = False

    @classmethod
    async def open(cls, sock: socket.socket, receiver: FrameReceiver) -> FrameLink:
        """Take over a connected stream socket. The link owns and closes it."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        if sock.family == socket.AF_UNIX:
            _, link = await loop.create_unix_connection(lambda: cls(receiver), sock=sock)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _, link = await loop.create_connection(lambda: cls(receiver), sock=sock)
        return link

    def send(self, frame: bytes) -> None:
        """Queue one whole frame; it leaves at the end of this loop turn. Does nothing once closed."""
        if self.is_closed:
            return
        self._outgoing.append(frame)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Send what is queued, then close: the replica reads EOF, which is an order to exit."""
        self._flush()
        self.is_closed = True
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._outgoing and self._transport is not None:
            outgoing, self._outgoing = self._outgoing, []
            self._transport.write(outgoing[0] if len(outgoing) == 1 else b"".join(outgoing))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._parser.feed(data)
        except FrameError as error:
            log.error("replica sent bytes that are no frames", extra={"error": str(error)})
            self.is_closed = True
            if self._transport is not None:
                self._transport.abort()
            return
        if frames:
            self.receiver.frames_received(frames)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self._outgoing.clear()
        self.receiver.link_lost(str(exc) if exc else "connection closed")
