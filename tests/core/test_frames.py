"""Frames: whatever the network does to the byte stream, the same frames come out, or FrameError does."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.core import frames
from serve.core.frames import (
    FLAG_END,
    HEADER,
    HEADER_BYTES,
    Frame,
    FrameError,
    FrameParser,
    Kind,
    RequestHead,
    ResponseHead,
    Usage,
)

U8, U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
I32 = st.integers(-(2**31), 2**31 - 1)
KINDS = st.sampled_from(Kind)
FRAMES = st.lists(st.tuples(KINDS, U32, st.binary(max_size=40), U8), max_size=12)
USAGES = st.builds(Usage, *[U64] * 6, *[U32] * 4)
REQUEST_IDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60)


def plain(found: list[Frame]) -> list[tuple[int, int, bytes, int]]:
    return [(frame.kind, frame.stream, bytes(frame.payload), frame.flags) for frame in found]


def one(data: bytes) -> Frame:
    [frame] = FrameParser().feed(data)
    return frame


@given(sent=FRAMES, data=st.data())
def test_any_chopping_of_the_stream_gives_the_same_frames(
    sent: list[tuple[Kind, int, bytes, int]], data: st.DataObject
) -> None:
    stream = b"".join(frames.pack(kind, number, payload, flags) for kind, number, payload, flags in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=30)))
    parser = FrameParser()
    found: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += parser.feed(stream[start:end])
    assert plain(found) == [(int(kind), number, payload, flags) for kind, number, payload, flags in sent]
    assert len(parser._buffer) == 0


@given(sent=FRAMES)
def test_frames_come_out_byte_by_byte_as_soon_as_they_are_whole(sent: list[tuple[Kind, int, bytes, int]]) -> None:
    parser = FrameParser()
    for kind, number, payload, flags in sent:
        data = frames.pack(kind, number, payload, flags)
        for position in range(len(data) - 1):
            assert parser.feed(data[position : position + 1]) == []
            assert len(parser._buffer) == position + 1
        assert plain(parser.feed(data[-1:])) == [(int(kind), number, payload, flags)]


def test_frames_stay_valid_while_the_parser_goes_on() -> None:
    parser = FrameParser()
    first = parser.feed(frames.pack(Kind.BODY, 1, b"first") + frames.pack(Kind.BODY, 2, b"second")[:15])
    second = parser.feed(frames.pack(Kind.BODY, 2, b"second")[15:] + frames.pack(Kind.BODY, 3, b"third"))
    assert plain(first + second) == [
        (Kind.BODY, 1, b"first", 0),
        (Kind.BODY, 2, b"second", 0),
        (Kind.BODY, 3, b"third", 0),
    ]


@given(chunks=st.lists(st.binary(max_size=80), max_size=8))
def test_garbage_raises_frame_error_and_nothing_else(chunks: list[bytes]) -> None:
    parser = FrameParser(max_payload_bytes=64)
    try:
        for chunk in chunks:
            for frame in parser.feed(chunk):
                assert frame.kind in set(Kind)
                assert len(frame.payload) <= 64
    except FrameError:
        pass


@pytest.mark.parametrize("kind", [0, 10, 255])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    with pytest.raises(FrameError, match=f"kind {kind}"):
        FrameParser().feed(HEADER.pack(0, kind, 0, 0, 1))


def test_bits_that_must_be_zero_are_checked() -> None:
    with pytest.raises(FrameError):
        FrameParser().feed(HEADER.pack(0, Kind.BODY, 0, 1, 1))


@pytest.mark.parametrize("length", [frames.MAX_PAYLOAD_BYTES + 1, 2**32 - 1])
def test_a_huge_length_is_refused_before_any_of_it_is_held(length: int) -> None:
    parser = FrameParser()
    with pytest.raises(FrameError, match=f"{length} bytes"):
        parser.feed(HEADER.pack(length, Kind.BODY, 0, 0, 1))
    assert len(parser._buffer) == 0


def test_the_bound_itself_is_allowed() -> None:
    parser = FrameParser(max_payload_bytes=8)
    assert plain(parser.feed(frames.pack(Kind.BODY, 1, b"8 bytes."))) == [(Kind.BODY, 1, b"8 bytes.", 0)]
    with pytest.raises(FrameError):
        parser.feed(frames.pack(Kind.BODY, 1, b"9 bytes.."))


def test_a_bad_frame_after_good_ones_in_one_read_is_refused() -> None:
    with pytest.raises(FrameError):
        FrameParser().feed(frames.pack(Kind.BODY, 1, b"good") + HEADER.pack(0, 99, 0, 0, 1))


def test_the_header_is_as_documented() -> None:
    assert HEADER_BYTES == 12
    assert frames.pack(Kind.BODY, 0x01020304, b"ab", FLAG_END) == bytes.fromhex("02000000 04 01 0000 04030201") + b"ab"


@given(
    stream=U32,
    head=st.builds(RequestHead, U8, REQUEST_IDS, I32, U64),
    body=st.binary(max_size=100),
    flags=st.sampled_from([0, FLAG_END]),
)
def test_a_request_survives_the_wire(stream: int, head: RequestHead, body: bytes, flags: int) -> None:
    frame = one(frames.pack_request(stream, head, body, flags))
    found, found_body = frames.unpack_request(frame.payload)
    assert (frame.kind, frame.stream, frame.flags) == (Kind.REQUEST, stream, flags)
    assert (found, bytes(found_body)) == (head, body)


@given(stream=U32, head=st.builds(ResponseHead, U16, U8, I32), body=st.binary(max_size=100), usage=st.none() | USAGES)
def test_a_response_survives_the_wire_whole_or_streamed(
    stream: int, head: ResponseHead, body: bytes, usage: Usage | None
) -> None:
    frame = one(frames.pack_response(stream, head, body, usage))
    found, found_usage, found_body = frames.unpack_response(frame)
    assert (frame.kind, frame.stream, frame.flags & FLAG_END) == (Kind.RESPONSE, stream, usage is not None)
    assert (found, found_usage, bytes(found_body)) == (head, usage, body)


@given(usage=USAGES)
def test_usage_survives_the_wire(usage: Usage) -> None:
    assert frames.unpack_usage(memoryview(frames.pack_usage(usage))) == usage


@given(payload=st.binary(max_size=120), flags=U8)
def test_payloads_of_garbage_raise_frame_error_and_nothing_else(payload: bytes, flags: int) -> None:
    view = memoryview(payload)
    for unpack in (
        lambda: frames.unpack_request(view),
        lambda: frames.unpack_usage(view),
        lambda: frames.unpack_response(Frame(Kind.RESPONSE, flags, 1, view)),
    ):
        with contextlib.suppress(FrameError):
            unpack()


def test_payloads_cut_anywhere_in_their_heads_are_refused() -> None:
    usage = Usage(*range(10))
    request = frames.pack_request(1, RequestHead(1, "w-17", -1, 0), b"")[HEADER_BYTES:]
    response = frames.pack_response(1, ResponseHead(200, 0, -1), b"", usage)[HEADER_BYTES:]
    for cut in range(len(request)):
        with pytest.raises(FrameError):
            frames.unpack_request(memoryview(request)[:cut])
    for cut in range(len(response)):
        with pytest.raises(FrameError):
            frames.unpack_response(Frame(Kind.RESPONSE, FLAG_END, 1, memoryview(response)[:cut]))
    for cut in range(len(frames.pack_usage(usage))):
        with pytest.raises(FrameError):
            frames.unpack_usage(memoryview(frames.pack_usage(usage))[:cut])


def test_counters_beyond_their_field_are_an_error_not_another_number() -> None:
    with pytest.raises(struct.error):
        frames.pack_usage(Usage(*([0] * 9 + [2**32])))
