"""Frames: the wire between an activator (or driver) and a replica. Version 1.

One stream socket per replica carries length-prefixed frames of many requests. A frame is a 12-byte header and a
payload; all integers are little-endian::

    u32 payload length | u8 kind | u8 flags | u16 zero | u32 stream

`stream` numbers one request on one connection (1..2³²-1, chosen by the caller); 0 is the connection itself.

========  =========  ===============================================================
kind      direction  payload
========  =========  ===============================================================
HELLO     → replica  token bytes; first frame on TCP, absent on an inherited socket
LOAD      → replica  JSON `events.LoadOrder`
REQUEST   → replica  `RequestHead` + body (flag END: the body is whole)
BODY      both       a further part of a request or response body
CANCEL    → replica  empty: the caller left; its work may be dropped
DRAIN     → replica  empty: finish what you have, send `Drained`, exit 0
EVENT     ← replica  JSON of one event of `serve.core.events`
RESPONSE  ← replica  `ResponseHead` + [`Usage` if flag END] + body
END       ← replica  `Usage`: closes a streamed response
========  =========  ===============================================================

Standard library only: the runtime imports this module inside a user's own environment.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

VERSION = 1
HEADER = struct.Struct("<IBBHI")
HEADER_BYTES = HEADER.size
MAX_PAYLOAD_BYTES = 1 << 30
"""A longer payload is a protocol error: the peer is broken or hostile and the connection is closed."""

CONNECTION_STREAM = 0
FLAG_END = 1
NO_JSON_LENGTH = -1


class Kind(IntEnum):
    HELLO = 1
    LOAD = 2
    REQUEST = 3
    BODY = 4
    CANCEL = 5
    DRAIN = 6
    EVENT = 7
    RESPONSE = 8
    END = 9


_KNOWN_KINDS = frozenset(int(kind) for kind in Kind)
_REQUEST, _RESPONSE = int(Kind.REQUEST), int(Kind.RESPONSE)


class Codec(IntEnum):
    """How a request body is written: the replica parses it, the activator never does."""

    OIP = 1
    """Open Inference Protocol REST: JSON, with binary tensors behind it where `json_length` is given."""
    OIP_RAW = 2
    """`Inference-Header-Content-Length: 0`: the body is the bytes of the single input."""


class Content(IntEnum):
    """Content type of a response body."""

    JSON = 0
    OIP_BINARY = 1


class FrameError(ValueError):
    """The peer sent bytes that are no frames. The connection cannot be used any further."""


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: memoryview


def pack(kind: int, stream: int = CONNECTION_STREAM, payload: bytes = b"", flags: int = 0) -> bytes:
    """Return one whole frame."""
    return HEADER.pack(len(payload), kind, flags, 0, stream) + payload


class FrameParser:
    """Cuts a byte stream into frames. Keeps at most one incomplete frame. Owned by its connection.

    `feed` takes `bytes` it may keep views of: the caller must not reuse the buffer.
    """

    __slots__ = ("_buffer", "_max_payload_bytes", "_need")

    def __init__(self, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self._buffer = bytearray()
        self._need = HEADER_BYTES
        self._max_payload_bytes = max_payload_bytes

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that `data` completes, in order. Raise FrameError on bytes that are no frames."""
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._need:
                return []
            data = bytes(self._buffer)
            self._buffer = bytearray()
        frames: list[Frame] = []
        view = memoryview(data)
        position, size = 0, len(data)
        while size - position >= HEADER_BYTES:
            length, kind, flags, zero, stream = HEADER.unpack_from(data, position)
            if kind not in _KNOWN_KINDS or zero or length > self._max_payload_bytes:
                raise FrameError(f"not a frame: kind {kind}, payload of {length} bytes")
            end = position + HEADER_BYTES + length
            if end > size:
                self._need = end - position
                break
            frames.append(Frame(kind, flags, stream, view[position + HEADER_BYTES : end]))
            position = end
        else:
            self._need = HEADER_BYTES
        if position < size:
            self._buffer += view[position:]
        return frames


_REQUEST_HEAD = struct.Struct("<BBHiQ")


class RequestHead(NamedTuple):
    """What a replica must know of a request besides its body."""

    codec: int
    request_id: str
    json_length: int
    """Bytes of JSON at the start of the body, or NO_JSON_LENGTH where the whole body is JSON."""
    timeout_us: int
    """Time left for this request when it was sent; 0 = no deadline."""


def pack_request(stream: int, head: RequestHead, body: bytes, flags: int = FLAG_END) -> bytes:
    """Return a REQUEST frame. The body is copied once, into the frame."""
    request_id = head.request_id.encode("ascii")
    packed = _REQUEST_HEAD.pack(head.codec, 0, len(request_id), head.json_length, head.timeout_us)
    length = _REQUEST_HEAD.size + len(request_id) + len(body)
    return b"".join((HEADER.pack(length, _REQUEST, flags, 0, stream), packed, request_id, body))


def unpack_request(payload: memoryview) -> tuple[RequestHead, memoryview]:
    """Return head and body (a view) of a REQUEST payload. Raise FrameError if it is too short."""
    try:
        codec, _, id_length, json_length, timeout_us = _REQUEST_HEAD.unpack_from(payload)
    except struct.error as error:
        raise FrameError("request head cut short") from error
    start = _REQUEST_HEAD.size
    if start + id_length > len(payload):
        raise FrameError("request id cut short")
    request_id = str(payload[start : start + id_length], "ascii", "replace")
    return RequestHead(codec, request_id, json_length, timeout_us), payload[start + id_length :]


_USAGE = struct.Struct("<QQQQQQIIII")


class Usage(NamedTuple):
    """What one request used of its replica, and the replica's cumulative counters at `left_ns`.

    Times are nanoseconds of the replica's CLOCK_MONOTONIC.
    """

    entered_ns: int
    """Taken off the socket: from here the request is inside."""
    left_ns: int
    """Answer complete."""
    infer_ns: int
    """Duration of the engine run that answered it; the whole batch's, not its share."""
    share_ns: int
    """Its part of the replica's busy time (`serve.core.meter`): shares of all requests sum to busy time."""
    total_busy_ns: int
    """Busy time of the replica's life so far."""
    total_share_ns: int
    """Shares handed out so far, this one included."""
    rows: int
    batch_rows: int
    answered: int
    """Requests the replica has answered so far, this one included."""
    executions: int
    """Engine runs so far."""


def pack_usage(usage: Usage) -> bytes:
    return _USAGE.pack(*usage)


_RESPONSE_HEAD = struct.Struct("<HBBi")


class ResponseHead(NamedTuple):
    status: int
    content: int
    json_length: int
    """Bytes of JSON before binary tensors, or NO_JSON_LENGTH where the body is JSON only."""


def pack_response(stream: int, head: ResponseHead, body: bytes, usage: Usage | None) -> bytes:
    """Return a RESPONSE frame: whole (flag END) where `usage` is given, the first of a stream where not."""
    packed = _RESPONSE_HEAD.pack(head.status, head.content, 0, head.json_length)
    if usage is None:
        length, flags, packed_usage = len(packed) + len(body), 0, b""
    else:
        length, flags, packed_usage = len(packed) + _USAGE.size + len(body), FLAG_END, _USAGE.pack(*usage)
    return b"".join((HEADER.pack(length, _RESPONSE, flags, 0, stream), packed, packed_usage, body))


def unpack_response(frame: Frame) -> tuple[ResponseHead, Usage | None, memoryview]:
    """Return head, usage (None while streaming) and body view of a RESPONSE. Raise FrameError if cut short."""
    payload = frame.payload
    try:
        status, content, _, json_length = _RESPONSE_HEAD.unpack_from(payload)
        if not frame.flags & FLAG_END:
            return ResponseHead(status, content, json_length), None, payload[_RESPONSE_HEAD.size :]
        usage = Usage(*_USAGE.unpack_from(payload, _RESPONSE_HEAD.size))
    except struct.error as error:
        raise FrameError("response cut short") from error
    return ResponseHead(status, content, json_length), usage, payload[_RESPONSE_HEAD.size + _USAGE.size :]


def unpack_usage(payload: memoryview) -> Usage:
    """Return the usage in an END payload. Raise FrameError if it is too short."""
    try:
        return Usage(*_USAGE.unpack_from(payload))
    except struct.error as error:
        raise FrameError("usage cut short") from error
