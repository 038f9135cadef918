"""The blocking end of a replica's socket: reads frames, packs answers. Wire format: `serve.core.frames`.

Beside `FrameParser` because a blocking reader can receive a large tensor straight into the memory it stays in, and
because frames here are plain tuples: both matter where a request takes some tens of microseconds.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from serve.core.frames import HEADER, HEADER_BYTES, MAX_PAYLOAD_BYTES, FrameError, Kind

RawFrame = tuple[int, int, int, memoryview]
"""Kind, flags, stream, payload: `frames.Frame` without its class."""

_READ_BYTES = 128 * 1024
_JOIN_BYTES = 256 * 1024
"""Up to here outgoing pieces are copied into one system call; above, copying costs more than calls."""

_FIRST_KIND, _LAST_KIND = min(Kind), max(Kind)


class FrameReader:
    """Reads frames from a blocking stream socket. Owned by the replica's main thread.

    Payloads are views of memory that is never reused: they may be kept.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = b""
        """Start of a frame that is not complete, shorter than one read."""
        self._large: bytearray | None = None
        """A frame longer than one read, received in place."""
        self._filled = 0

    def read(self, wait: bool) -> list[RawFrame] | None:
        """Return the frames that one read completes, maybe none; None at the end of the stream.

        Without `wait`, return at once where nothing has come. Raise FrameError, OSError.
        """
        flags = 0 if wait else socket.MSG_DONTWAIT
        try:
            if self._large is not None:
                return self._read_large(self._large, flags)
            data = self._sock.recv(_READ_BYTES, flags)
        except BlockingIOError:
            return []
        if not data:
            return None
        if self._rest:
            data = self._rest + data
        return self._cut(data)

    def _cut(self, data: bytes) -> list[RawFrame]:
        frames: list[RawFrame] = []
        view = memoryview(data)
        position, size, need = 0, len(data), HEADER_BYTES
        unpack = HEADER.unpack_from
        while size - position >= HEADER_BYTES:
            length, kind, flags, zero, stream = unpack(data, position)
            if not _FIRST_KIND <= kind <= _LAST_KIND or zero or length > MAX_PAYLOAD_BYTES:
                raise FrameError(f"not a frame: kind {kind}, payload of {length} bytes")
            start = position + HEADER_BYTES
            end = start + length
            if end > size:
                need = end - position
                break
            frames.append((kind, flags, stream, view[start:end]))
            position = end
        rest = size - position
        if need <= _READ_BYTES:
            self._rest = data[position:] if rest else b""
            return frames
        self._rest = b""
        self._large = bytearray(need)
        self._large[:rest] = view[position:]
        self._filled = rest
        return frames

    def _read_large(self, large: bytearray, flags: int) -> list[RawFrame] | None:
        count = self._sock.recv_into(memoryview(large)[self._filled :], 0, flags)
        if count == 0:
            return None
        self._filled += count
        if self._filled < len(large):
            return []
        self._large = None
        _, kind, frame_flags, _, stream = HEADER.unpack_from(large)
        return [(kind, frame_flags, stream, memoryview(large)[HEADER_BYTES:])]


# As in `frames.unpack_request`, which also makes the id a string and the head an object: refusals alone need those.
REQUEST_HEAD = struct.Struct("<BBHiQ")

# `frames.pack_response` up to the body, in one call: HEADER, response head (status, content, 0, json length), usage.
ANSWER = struct.Struct("<IBBHI HBBi QQQQQQIIII")
ANSWER_HEAD_BYTES = ANSWER.size - HEADER_BYTES


def send_pieces(sock: socket.socket, pieces: Sequence[bytes | memoryview], total_bytes: int) -> None:
    """Send all pieces, in one system call where they are small. Blocks until the peer took them. Raise OSError."""
    if total_bytes <= _JOIN_BYTES:
        sock.sendall(b"".join(pieces))
        return
    for piece in pieces:
        sock.sendall(piece)
