"""The blocking reader and the packed answers say the same as `serve.core.frames`."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.wire import ANSWER, ANSWER_HEAD_BYTES, REQUEST_HEAD, FrameReader, RawFrame, send_pieces
from serve.core.frames import (
    FLAG_END,
    HEADER,
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
)

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(name="pair")
def fixture_pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def read_all(reader: FrameReader) -> list[RawFrame]:
    """Read to the end of the stream."""
    frames: list[RawFrame] = []
    while (read := reader.read(wait=True)) is not None:
        frames += read
    return frames


def sent_in_pieces(data: bytes, cuts: list[int]) -> list[RawFrame]:
    """Return what the reader makes of `data` when it arrives cut at these places."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
        reader, frames = FrameReader(theirs), []
        for start, end in itertools.pairwise(places):
            ours.sendall(data[start:end])
            frames += reader.read(wait=False) or []
        ours.close()
        return frames + read_all(reader)


frames_to_send = st.lists(
    st.tuples(st.sampled_from(Kind), st.integers(0, 1), st.integers(0, 2**32 - 1), st.binary(max_size=40)), max_size=6
)


@given(frames_to_send, st.lists(st.integers(0, 1000), max_size=8))
def test_the_reader_finds_the_frames_that_the_parser_finds_however_they_are_cut(
    frames: list[tuple[Kind, int, int, bytes]], cuts: list[int]
) -> None:
    data = b"".join(pack(kind, stream, payload, flags) for kind, flags, stream, payload in frames)
    found = [Frame(*frame) for frame in sent_in_pieces(data, cuts)]
    assert found == FrameParser().feed(data)


@settings(max_examples=15)
@given(
    st.integers(127_000, 132_000) | st.integers(200_000, 600_000),
    st.lists(st.integers(0, 300_000), max_size=3),
    st.booleans(),
)
def test_a_frame_longer_than_a_read_comes_whole_and_its_neighbours_too(
    size: int, cuts: list[int], has_neighbour: bool
) -> None:
    large = bytes(range(251)) * (size // 251)
    before = pack(Kind.CANCEL, 1) if has_neighbour else b""
    data = before + pack(Kind.REQUEST, 2, large, FLAG_END) + pack(Kind.DRAIN)
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def send() -> None:
            places = sorted({cut % len(data) for cut in cuts} | {0, len(data)})
            for start, end in itertools.pairwise(places):
                ours.sendall(data[start:end])
            ours.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        frames = read_all(FrameReader(theirs))
        sender.join()
    assert [Frame(*frame) for frame in frames] == FrameParser().feed(data)


def test_payloads_stay_valid_while_more_is_read(pair: Pair) -> None:
    ours, theirs = pair
    reader = FrameReader(theirs)
    ours.sendall(pack(Kind.BODY, 1, b"first"))
    kept = reader.read(wait=True)
    ours.sendall(pack(Kind.BODY, 1, b"other"))
    reader.read(wait=True)
    assert kept is not None
    assert bytes(kept[0][3]) == b"first"


def test_without_waiting_an_empty_socket_gives_nothing_and_a_closed_one_the_end(pair: Pair) -> None:
    ours, theirs = pair
    reader = FrameReader(theirs)
    assert reader.read(wait=False) == []
    ours.close()
    assert reader.read(wait=False) is None


@pytest.mark.parametrize(
    "header",
    [
        HEADER.pack(0, 0, 0, 0, 1),
        HEADER.pack(0, max(Kind) + 1, 0, 0, 1),
        HEADER.pack(0, Kind.LOAD, 0, 1, 1),
        HEADER.pack(2**31, Kind.LOAD, 0, 0, 1),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_bytes_that_are_no_frames_are_an_error_as_for_the_parser(pair: Pair, header: bytes) -> None:
    ours, theirs = pair
    ours.sendall(header)
    with pytest.raises(FrameError):
        FrameReader(theirs).read(wait=True)
    with pytest.raises(FrameError):
        FrameParser().feed(header)


@given(
    st.integers(1, 2**32 - 1),
    st.builds(ResponseHead, st.integers(0, 999), st.integers(0, 1), st.integers(-1, 2**31 - 1)),
    st.builds(Usage, *[st.integers(0, 2**64 - 1)] * 6, *[st.integers(0, 2**32 - 1)] * 4),
    st.binary(max_size=20),
)
def test_a_packed_answer_is_the_frame_that_the_protocol_says(
    stream: int, head: ResponseHead, usage: Usage, body: bytes
) -> None:
    status, content, json_length = head
    packed = ANSWER.pack(
        *(ANSWER_HEAD_BYTES + len(body), Kind.RESPONSE, FLAG_END, 0, stream),
        *(status, content, 0, json_length),
        *usage,
    )
    assert packed + body == pack_response(stream, head, body, usage)


@given(st.integers(1, 2), st.text("abc-1", max_size=20), st.integers(-1, 2**31 - 1), st.integers(0, 2**64 - 1))
def test_a_request_head_is_read_as_the_protocol_says(
    codec: int, request_id: str, json_length: int, timeout_us: int
) -> None:
    frame = pack_request(1, RequestHead(codec, request_id, json_length, timeout_us), b"body")
    payload = memoryview(frame)[12:]
    assert REQUEST_HEAD.unpack_from(payload) == (codec, 0, len(request_id), json_length, timeout_us)
    assert bytes(payload[REQUEST_HEAD.size + len(request_id) :]) == b"body"


def test_large_pieces_leave_in_order_and_whole(pair: Pair) -> None:
    ours, theirs = pair
    pieces: list[bytes | memoryview] = [b"a" * 10, memoryview(b"b" * 400_000), b"c" * 10]
    sender = threading.Thread(target=send_pieces, args=(ours, pieces, sum(map(len, pieces))))
    sender.start()
    expected = b"".join(pieces)
    received = b""
    while len(received) < len(expected):
        received += theirs.recv(1 << 16)
    sender.join()
    assert received == expected
