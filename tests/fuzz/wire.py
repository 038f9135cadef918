"""Targets: bytes between platform and replica."""

from __future__ import annotations

import socket
from typing import cast

from runtime.wire import FrameReader
from serve.core.events import (
    Drained,
    EventError,
    Failed,
    LoadOrder,
    Phase,
    PhaseDone,
    Ready,
    Stats,
    TensorSpec,
    decode_event,
    decode_load,
    encode_event,
    encode_load,
)
from serve.core.frames import (
    HEADER_BYTES,
    Frame,
    FrameError,
    FrameParser,
    Kind,
    RequestHead,
    ResponseHead,
    Usage,
    pack,
    pack_request,
    pack_response,
    pack_usage,
    unpack_request,
    unpack_response,
    unpack_usage,
)
from tests.fuzz.target import Target

MOST_BYTES = 4096
"""Largest payload of the parser that is fuzzed."""
Parsed = list[tuple[int, int, int, bytes]]


def frames(data: bytes) -> None:
    """First byte: length of the pieces. However a stream is cut, it means the same, and little of it is held."""
    size, stream = (data[0] or 256 if data else 1), data[1:]
    whole, is_broken = parse([stream])
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    in_pieces, is_broken_in_pieces = parse(pieces)
    assert is_broken == is_broken_in_pieces
    if not is_broken:
        assert in_pieces == whole
        packed = b"".join(pack(kind, number, payload, flags) for kind, flags, number, payload in whole)
        assert stream.startswith(packed)
        assert len(stream) - len(packed) < HEADER_BYTES + MOST_BYTES, "a whole frame was held back"
        assert read(pieces) == whole
    for kind, flags, number, payload in in_pieces:
        payload_of(Frame(kind, flags, number, memoryview(payload)))


def parse(pieces: list[bytes]) -> tuple[Parsed, bool]:
    """Return the frames, and whether the stream is broken."""
    parser, found = FrameParser(MOST_BYTES), []
    for piece in pieces:
        try:
            found += parser.feed(piece)
        except FrameError:
            return [(f.kind, f.flags, f.stream, bytes(f.payload)) for f in found], True
        assert len(parser._buffer) < HEADER_BYTES + MOST_BYTES
    return [(f.kind, f.flags, f.stream, bytes(f.payload)) for f in found], False


class Pieces:
    """The reading half of a socket that gives these pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces[::-1]

    def recv(self, size: int, _flags: int = 0) -> bytes:
        return self._pieces.pop() if self._pieces else b""


def read(pieces: list[bytes]) -> Parsed:
    """Return the frames as the replica's reader sees them, which parses for itself."""
    reader = FrameReader(cast("socket.socket", Pieces(pieces)))
    found: Parsed = []
    while (some := reader.read(wait=True)) is not None:
        found += [(kind, flags, stream, bytes(payload)) for kind, flags, stream, payload in some]
    return found


def payload_of(frame: Frame) -> None:
    """Unpack whatever the frame says it is; what was understood packs to what came."""
    try:
        if frame.kind == Kind.REQUEST:
            head, body = unpack_request(frame.payload)
            if head.request_id.isascii():
                again = unpack_request(memoryview(pack_request(frame.stream, head, bytes(body))[HEADER_BYTES:]))
                assert again == (head, body)
        elif frame.kind == Kind.RESPONSE:
            answer, usage, body = unpack_response(frame)
            (repacked,) = FrameParser().feed(pack_response(frame.stream, answer, bytes(body), usage))
            assert unpack_response(repacked) == (answer, usage, body)
        elif frame.kind == Kind.END:
            usage = unpack_usage(frame.payload)
            assert unpack_usage(memoryview(pack_usage(usage))) == usage
    except FrameError:
        pass


def events(data: bytes) -> None:
    """An event, or a load order, is understood whole or refused; what was understood comes back as it went."""
    try:
        event = decode_event(data)
    except EventError:
        pass
    else:
        assert decode_event(encode_event(event)) == event
        if isinstance(event, Ready):
            assert all(isinstance(dim, int) for spec in event.inputs + event.outputs for dim in spec.shape)
    try:
        order = decode_load(data)
    except EventError:
        return
    assert encode_load(decode_load(encode_load(order))) == encode_load(order)


_USAGE = Usage(1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
_STREAM = b"".join(
    (
        pack(Kind.HELLO, payload=b"token"),
        pack_request(1, RequestHead(1, "w-1", -1, 1000), b'{"inputs":[]}'),
        pack(Kind.BODY, 1, b"more", 1),
        pack(Kind.CANCEL, 1),
        pack_response(1, ResponseHead(200, 0, -1), b"{}", _USAGE),
        pack_response(2, ResponseHead(200, 0, -1), b"part", None),
        pack(Kind.END, 2, pack_usage(_USAGE)),
        pack(Kind.DRAIN),
    )
)
_SPEC = TensorSpec("x", "FP32", (-1, 4))
_EVENTS = (
    PhaseDone(Phase.LOAD, 1, 2),
    Ready(1, "onnxruntime_onnx", "1", (_SPEC,), (_SPEC,), True, 1 << 20, 1 << 21),
    Failed(1, "model_invalid", "export it again"),
    Drained(1, 2),
    Stats(1, 2, 3, 4, 5),
)
_ORDER = LoadOrder("m-r1-a", "m", 1, "/models/m", "model.onnx", "onnx", settings={"a": [1, None]})

TARGETS = (
    Target(
        "frames",
        frames,
        (b"\x00" + _STREAM, b"\x01" + _STREAM, b"\x07" + _STREAM * 3),
        ("serve.core", "runtime"),
    ),
    Target(
        "events",
        events,
        (*(encode_event(event) for event in _EVENTS), encode_load(_ORDER)),
        ("serve.core",),
        (b'"event"', b'"ready"', b'"shape"', b"NaN", b"1e999", b"null", b"\\ud800", b"[[", b"true"),
    ),
)
