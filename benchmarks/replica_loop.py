"""What a request costs inside a replica, beside its floor: `python -P benchmarks/replica_loop.py [--seconds 1]`.

A replica in a process of its own answers rounds of 1, 8 and 32 requests to a tiny model (64 → 16 floats) over a
socketpair. Its cost is the CPU time of its process, system calls and wake-ups included. The floor is the same parse,
run and encode in a bare loop: no sockets, no frames, no checks, no metering; once each request alone, as a plain web
server does it, and once joined into a batch. Every figure is the median of many short stretches, floors and replica in
turn, so that other work on the machine disturbs neither more than the other.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import orjson
from onnx import TensorProto, helper, numpy_helper

from serve.core.events import LoadOrder, Ready, decode_event, encode_load
from serve.core.frames import NO_JSON_LENGTH, Codec, Frame, FrameParser, Kind, RequestHead, pack, pack_request

ROWS_AT_ONCE = (1, 8, 32)
STRETCH_S = 0.001


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="per line of the table")
    seconds = parser.parse_args().seconds
    values = np.random.default_rng(0).random((1, 64)).astype(np.float32)
    bodies = {"JSON": json_request(values), "binary": binary_request(values)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tiny.onnx")
        path.write_bytes(tiny_model())
        print("µs of CPU per request      replica   floor, joined   floor, alone")
        with replica(path) as peer:
            for encoding, (body, json_length) in bodies.items():
                for together in ROWS_AT_ONCE:
                    works = [
                        peer.work(body, json_length, together),
                        *floors(path, encoding, body, json_length, together),
                    ]
                    figures = [figure / together for figure in medians_us(works, seconds)]
                    print(f"{encoding:8} {together:3} at once " + "".join(f"{figure:16.1f}" for figure in figures))


Work = tuple[Callable[[], None], int]
"""What to do, and the clock that says what it costs."""


def medians_us(works: list[Work], seconds: float) -> list[float]:
    """Return the median cost of each work, µs, over stretches of about a millisecond taken in turn."""
    costs: list[list[float]] = [[] for _ in works]
    repeats = [1] * len(works)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for place, (work, clock) in enumerate(works):
            start = time.clock_gettime(clock)
            for _ in range(repeats[place]):
                work()
            took = time.clock_gettime(clock) - start
            costs[place].append(took / repeats[place] * 1e6)
            repeats[place] = max(1, round(repeats[place] * min(4.0, STRETCH_S / max(took, 1e-6))))
    return [statistics.median(cost[len(cost) // 10 :]) for cost in costs]


@contextlib.contextmanager
def replica(path: Path) -> Iterator[Peer]:
    """Run a replica that has loaded the model, in a process of its own."""
    ours, theirs = socket.socketpair()
    code = "import socket, sys; from runtime import worker; worker.run(socket.socket(fileno=int(sys.argv[1])))"
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-P", "-c", code, str(theirs.fileno())]
    with subprocess.Popen(arguments, pass_fds=[theirs.fileno()], env=environment) as process:
        theirs.close()
        with ours:
            order = LoadOrder("tiny-r1-aaaaaaaa", "tiny", 1, str(path.parent), path.name, "onnx")
            yield Peer(ours, process.pid, order)


class Peer:
    """The other end of the replica's socket."""

    def __init__(self, sock: socket.socket, pid: int, order: LoadOrder) -> None:
        self._sock = sock
        self._clock = (~pid << 3) | 2  # clock_getcpuclockid(pid)
        self._parser = FrameParser()
        sock.sendall(pack(Kind.LOAD, payload=encode_load(order)))
        while not any(isinstance(decode_event(frame.payload), Ready) for frame in self._read()):
            pass

    def work(self, body: bytes, json_length: int, together: int) -> Work:
        head = RequestHead(Codec.OIP, "abcdefgh-12345", json_length, 300_000_000)
        requests = b"".join(pack_request(stream, head, body) for stream in range(1, together + 1))
        return lambda: self._round(requests, together), self._clock

    def _round(self, requests: bytes, together: int) -> None:
        """Send all requests at once and wait for all answers."""
        self._sock.sendall(requests)
        while together:
            together -= sum(frame.kind == Kind.RESPONSE for frame in self._read())

    def _read(self) -> list[Frame]:
        data = self._sock.recv(1 << 18)
        if not data:
            raise SystemExit("the replica ended")
        return self._parser.feed(data)


def floors(path: Path, encoding: str, body: bytes, json_length: int, together: int) -> list[Work]:
    """Return the bare work: all joined into one run, and each alone."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    parse = parse_json if encoding == "JSON" else lambda data: parse_binary(data, json_length)
    write = write_json if encoding == "JSON" else write_binary

    def joined() -> None:
        outputs = session.run(["y"], {"x": np.concatenate([parse(body) for _ in range(together)])})[0]
        for row in range(together):
            write(outputs[row : row + 1])

    def alone() -> None:
        for _ in range(together):
            write(session.run(["y"], {"x": parse(body)})[0])

    return [(joined, time.CLOCK_PROCESS_CPUTIME_ID), (alone, time.CLOCK_PROCESS_CPUTIME_ID)]


def parse_json(body: bytes) -> Any:
    tensor = orjson.loads(body)["inputs"][0]
    return np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])


def parse_binary(body: bytes, json_length: int) -> Any:
    tensor = orjson.loads(body[:json_length])["inputs"][0]
    return np.frombuffer(body, np.float32, offset=json_length).reshape(tensor["shape"])


def write_json(output: Any) -> bytes:
    tensor = {"name": "y", "datatype": "FP32", "shape": output.shape, "data": output.ravel()}
    text: bytes = orjson.dumps(
        {"model_name": "tiny", "model_version": "1", "outputs": [tensor]}, option=orjson.OPT_SERIALIZE_NUMPY
    )
    return text


def write_binary(output: Any) -> bytes:
    parameters = {"binary_data_size": output.nbytes}
    tensor = {"name": "y", "datatype": "FP32", "shape": output.shape, "parameters": parameters}
    text: bytes = orjson.dumps({"model_name": "tiny", "model_version": "1", "outputs": [tensor]}) + output.tobytes()
    return text


def json_request(values: Any) -> tuple[bytes, int]:
    tensor = {"name": "x", "shape": list(values.shape), "datatype": "FP32", "data": values.ravel().tolist()}
    return orjson.dumps({"inputs": [tensor]}), NO_JSON_LENGTH


def binary_request(values: Any) -> tuple[bytes, int]:
    tensor = {
        "name": "x",
        "shape": list(values.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": values.nbytes},
    }
    outputs = [{"name": "y", "parameters": {"binary_data": True}}]
    text = orjson.dumps({"inputs": [tensor], "outputs": outputs})
    return text + values.tobytes(), len(text)


def tiny_model() -> bytes:
    """Return a perceptron 64 → 16 with a variable batch axis."""
    weights = np.random.default_rng(1).standard_normal((64, 16)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(weights, "w")],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized


if __name__ == "__main__":
    main()
