"""A whole replica, fed over its socket with requests that nobody should send: each is answered, and it lives on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.core.events import LoadOrder
from serve.core.frames import FLAG_END, Kind, RequestHead, pack, pack_request
from tests.fuzz.mutate import inputs
from tests.fuzz.target import CORPUS
from tests.fuzz.targets import TARGETS
from tests.fuzz.tensors import HEAD
from tests.runtime.models import identity, order
from tests.runtime.peer import Peer, scripted

TENSORS = TARGETS["tensors"]
SHAPE = [-1, 2]


def orders(folder: Path) -> dict[str, LoadOrder]:
    (folder / "cube").mkdir(parents=True)
    pair = {"input": "in_0", "output": "out_0", "datatype": "FP32", "shape": SHAPE}
    cube = {"input": "in_0", "output": "out_0", "datatype": "FP32", "shape": [-1, -1, -1, -1]}
    made = identity("FP32")
    graph = made.graph
    for value in (graph.input[0], graph.output[0]):
        value.name = {"x0": "in_0", "y0": "out_0"}[value.name]
    graph.node[0].input[0], graph.node[0].output[0] = "in_0", "out_0"
    return {
        "scripted": scripted(folder, tensors=[pair]),
        "cube": scripted(folder / "cube", tensors=[cube]),
        "onnx": order(folder, made),
    }


@pytest.fixture(scope="module", params=["scripted", "cube", "onnx"])
def replica(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    folder = tmp_path_factory.mktemp("replica")
    order = orders(folder / "m")[request.param]
    with Peer(folder) as peer:
        peer.load(order)
        yield peer


def good(peer: Peer, stream: int) -> None:
    """Ask what the model can answer."""
    shape = [1, 2] if len(peer.ready().inputs[0].shape) == 2 else [1, 1, 1, 2]
    item = {"name": "in_0", "datatype": "FP32", "shape": shape, "data": [1, 2]}
    (answer,) = peer.ask(pack_request(stream, whole(), json.dumps({"inputs": [item]}).encode()), streams=[stream])
    assert answer.status == 200, answer.body


def whole(json_length: int = -1, codec: int = 1) -> RequestHead:
    return RequestHead(codec, "w-1", json_length, 0)


def frame(stream: int, data: bytes, *, in_parts: bool) -> bytes:
    """Return an input of the target `tensors` as the frames of a request."""
    data = data.ljust(HEAD.size, b"\x00")
    _, codec, json_length = HEAD.unpack_from(data)
    body, head = data[HEAD.size :], whole(json_length, codec % 4)
    if not in_parts:
        return pack_request(stream, head, body)
    cut = len(body) // 2
    first = pack_request(stream, head, body[:cut], flags=0)
    return first + pack(Kind.BODY, stream, body[cut:]) + pack(Kind.BODY, stream, b"", FLAG_END)


def check(peer: Peer, bodies: list[bytes]) -> None:
    streams = list(range(1, len(bodies) + 1))
    frames = [frame(stream, body, in_parts=stream % 3 == 0) for stream, body in zip(streams, bodies, strict=True)]
    for answer in peer.ask(*frames, streams=streams):
        if answer.status == 200:
            continue
        assert 400 <= answer.status < 500 or answer.status == 501, answer.body
        assert set(answer.message) == {"error", "code", "request_id"}
        assert "Traceback" not in answer.message["error"]
    good(peer, len(bodies) + 1)
    assert peer.process.poll() is None
    peer.answers.clear()


def test_a_replica_survives_what_once_was_too_much(replica: Peer) -> None:
    check(replica, [*TENSORS.seeds, *(path.read_bytes() for path in sorted((CORPUS / "tensors").iterdir()))])


@settings(
    max_examples=60,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(st.lists(inputs(TENSORS), min_size=1, max_size=12))
def test_a_replica_answers_each_request_and_the_good_one_behind_them(replica: Peer, bodies: list[bytes]) -> None:
    check(replica, bodies)


@pytest.mark.parametrize(
    "dims",
    [
        [0, 2],
        [2147483647, 0],
        [0, 0],
        [65536, 65536],
        [1, 1000000000000000000],
        [-1, 2],
        [1.5, 2],
        [True, 2],
        [],
        [[1], 2],
    ],
)
def test_a_replica_takes_any_shape_for_what_it_is(replica: Peer, dims: list[object]) -> None:
    for data in ([], [1, 2], [[1, 2]], None):
        item = {"name": "in_0", "datatype": "FP32", "shape": dims, "data": data}
        check(replica, [HEAD.pack(0, 1, -1) + json.dumps({"inputs": [item]}).encode()])


def test_a_replica_whose_peer_speaks_no_frames_ends_with_a_sentence_in_its_log(tmp_path: Path) -> None:
    with Peer(tmp_path) as peer:
        peer.load(scripted(tmp_path))
        peer.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 10)
        assert peer.exit_code() == 1
        log = peer.log_file.read_text()
        assert "the other side broke the protocol" in log
        assert "Traceback" not in log
