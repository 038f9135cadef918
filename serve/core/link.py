"""The asyncio end of a replica's socket: frames in, frames out, one write per loop turn."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Protocol

from serve.core.frames import Frame, FrameError, FrameParser

log = logging.getLogger(__name__)

_READ_BYTES = 256 * 1024
_REST_READS = 64
"""More than a socket's buffers hold; something else that has the other end could go on for ever."""


class FrameReceiver(Protocol):
    """Who listens on a link. Called on the loop; must not block and must not raise."""

    def frames_received(self, frames: list[Frame]) -> None:
        """All frames that one read completed, in order."""

    def link_lost(self, reason: str) -> None:
        """No more frames will come, once. `reason` is a sentence fragment for logs."""


class Link(Protocol):
    """One end of a connection to one replica, as the activator uses it. `FrameLink` is the one over a socket."""

    receiver: FrameReceiver

    @property
    def is_closed(self) -> bool: ...

    @property
    def has_ended(self) -> bool:
        """The other side is gone: what still comes is the rest of what it said, and nothing sent arrives."""

    @property
    def undelivered(self) -> list[bytes]:
        """Frames that cannot have been read: the other side was gone before they were written."""

    def send(self, frame: bytes, *, at_once: bool = False) -> None:
        """Send one whole frame, at the end of this loop turn at the latest. Once closed it is `undelivered`."""

    def close(self) -> None:
        """Send what can be sent at once, then close: the replica reads EOF, which is an order to exit."""

    def read_rest(self) -> None:
        """Hand over now what has come already: the other side has ended, and what it said last still counts."""


class FrameLink:
    """One connection to one replica. Owned by the event loop it was opened on.

    Works on the socket itself, not through a transport: what is sent in one loop turn leaves at its end with one
    system call, without another pass through the loop. What waits here is bounded by its users: at most a replica's
    concurrency of requests is ever outstanding on its link.
    """

    def __init__(self, sock: socket.socket, receiver: FrameReceiver) -> None:
        self.receiver = receiver
        self.is_closed = False
        self.has_ended = False
        self.undelivered: list[bytes] = []
        self._sock = sock
        self._fd = sock.fileno()
        self._parser = FrameParser()
        self._loop = asyncio.get_running_loop()
        self._outgoing: list[bytes] = []
        self._unsent = memoryview(b"")
        """What the socket did not take; while there is some, a writer waits for room."""
        self._flush_scheduled = False

    @classmethod
    async def open(cls, sock: socket.socket, receiver: FrameReceiver) -> FrameLink:
        """Take over a connected stream socket. The link owns and closes it."""
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = cls(sock, receiver)
        link._loop.add_reader(link._fd, link._readable)
        return link

    def send(self, frame: bytes, *, at_once: bool = False) -> None:
        """Queue one whole frame; it leaves at the end of this loop turn, or now. Once closed it is `undelivered`.

        `at_once` is for a replica with nothing to do: it works while the rest of the turn goes on here.
        """
        if self.is_closed:
            self.undelivered.append(frame)
            return
        self._outgoing.append(frame)
        if at_once:
            self._flush()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._end_of_turn)

    def close(self) -> None:
        """Send what the socket takes at once, then close: the replica reads EOF, which is an order to exit."""
        self._flush()
        if self._shut():
            self._loop.call_soon(self.receiver.link_lost, "closed by the platform")

    def read_rest(self) -> None:
        """Hand over now what has come already: the other side has ended, and what it said last still counts."""
        self.has_ended = True
        for _ in range(_REST_READS):
            if self.is_closed or not self._read():
                return

    def _end_of_turn(self) -> None:
        self._flush_scheduled = False
        self._flush()

    def _flush(self) -> None:
        if not self._outgoing or self.is_closed:
            return
        outgoing, self._outgoing = self._outgoing, []
        data = outgoing[0] if len(outgoing) == 1 else b"".join(outgoing)
        if self._unsent:
            self._unsent = memoryview(b"".join((self._unsent, data)))
            return
        sent = self._write(data)
        if self.has_ended:
            self.undelivered += outgoing
        elif sent < len(data) and not self.is_closed:
            self._unsent = memoryview(data)[sent:]
            self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        self._unsent = self._unsent[self._write(self._unsent) :]
        if not self._unsent and not self.is_closed:
            self._loop.remove_writer(self._fd)

    def _write(self, data: bytes | memoryview) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            # What the replica said before it died may still be there to read: its end is noticed by reading.
            self.has_ended = True
            log.debug("a replica's socket takes nothing any more: %s", error)
            return len(data)

    def _readable(self) -> None:
        self._read()

    def _read(self) -> bool:
        """Take what has come, up to a bound. Return whether there was anything."""
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError as error:
            self._lost(str(error))
            return False
        if not data:
            self._lost("the other side closed the connection")
            return False
        try:
            frames = self._parser.feed(data)
        except FrameError as error:
            log.error("replica sent bytes that are no frames", extra={"error": str(error)})
            self._lost(str(error))
            return False
        if frames:
            self.receiver.frames_received(frames)
        return True

    def _lost(self, reason: str) -> None:
        """Tell in this turn of the loop, so that nothing is sent any more to who is not there."""
        if self._shut():
            self.receiver.link_lost(reason)

    def _shut(self) -> bool:
        """Close the socket. Return False if it was closed already."""
        if self.is_closed:
            return False
        self.is_closed = True
        self.undelivered += self._outgoing
        self._outgoing.clear()
        self._loop.remove_reader(self._fd)
        if self._unsent:
            self._unsent = memoryview(b"")
            self._loop.remove_writer(self._fd)
        self._sock.close()
        return True
