"""What a request costs inside a replica, beside its floor: `python -P benchmarks/replica_loop.py [--seconds 1]`.

A replica in a process of its own answers rounds of 1, 8 and 32 requests to a tiny model (64 → 16 floats) over a
socketpair. Its cost is the CPU time of its process. The floor is the same parse, run and encode in a bare loop: no
frames, no checks, no metering; once each request alone, as a plain web server does it, and once joined into a batch.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import orjson
from onnx import TensorProto, helper, numpy_helper

from runtime import worker
from serve.core.events import LoadOrder, Ready, decode_event
from serve.core.frames import NO_JSON_LENGTH, Codec, FrameParser, Kind, RequestHead, pack_request

ROWS_AT_ONCE = (1, 8, 32)
Session = Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="per figure")
    seconds = parser.parse_args().seconds
    values = np.random.default_rng(0).random((1, 64)).astype(np.float32)
    bodies = {"JSON": json_request(values), "binary": binary_request(values)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tiny.onnx")
        path.write_bytes(tiny_model())
        print("µs of CPU per request      replica   floor, joined   floor, alone   (replica, wall)")
        for encoding, (body, json_length) in bodies.items():
            for together in ROWS_AT_ONCE:
                floors = measure_floors(path, encoding, body, json_length, together, seconds)
                cpu_us, wall_us = measure_replica(path, body, json_length, together, seconds)
                joined_us, alone_us = floors
                print(
                    f"{encoding:8} {together:3} at once {cpu_us:16.1f} {joined_us:15.1f} {alone_us:14.1f} "
                    f"{wall_us:16.1f}"
                )


def measure_replica(path: Path, body: bytes, json_length: int, together: int, seconds: float) -> tuple[float, float]:
    """Return µs per request: CPU of the replica's process, and wall time."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        order = LoadOrder("tiny-r1-aaaaaaaa", "tiny", 1, str(path.parent), path.name, "onnx")
        os._exit(worker.run(theirs, order))
    theirs.close()
    peer = Peer(ours)
    peer.wait_until_ready()
    head = RequestHead(Codec.OIP, "abcdefgh-12345", json_length, 300_000_000)
    requests = b"".join(pack_request(stream, head, body) for stream in range(1, together + 1))
    peer.round(requests, together)
    clock = (~pid << 3) | 2  # clock_getcpuclockid(pid)
    rounds = 0
    cpu, start = time.clock_gettime(clock), time.perf_counter()
    while time.perf_counter() - start < seconds:
        peer.round(requests, together)
        rounds += 1
    wall, cpu = time.perf_counter() - start, time.clock_gettime(clock) - cpu
    ours.close()
    os.waitpid(pid, 0)
    return cpu / rounds / together * 1e6, wall / rounds / together * 1e6


class Peer:
    """The other end of the replica's socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._parser = FrameParser()

    def wait_until_ready(self) -> None:
        while not any(isinstance(decode_event(frame.payload), Ready) for frame in self._read()):
            pass

    def round(self, requests: bytes, together: int) -> None:
        """Send all requests at once and wait for all answers."""
        self._sock.sendall(requests)
        while together:
            together -= sum(frame.kind == Kind.RESPONSE for frame in self._read())

    def _read(self) -> list[Any]:
        data = self._sock.recv(1 << 18)
        if not data:
            raise SystemExit("the replica ended")
        return list(self._parser.feed(data))


def measure_floors(
    path: Path, encoding: str, body: bytes, json_length: int, together: int, seconds: float
) -> tuple[float, float]:
    """Return µs of CPU per request of a bare loop: joined into one run, and each alone."""
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

    return cpu_us(joined, seconds / 2) / together, cpu_us(alone, seconds / 2) / together


def cpu_us(work: Callable[[], None], seconds: float) -> float:
    work()
    rounds, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        work()
        rounds += 1
    return (time.process_time() - start) / rounds * 1e6


def parse_json(body: bytes) -> Any:
    tensor = orjson.loads(body)["inputs"][0]
    return np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])


def parse_binary(body: bytes, json_length: int) -> Any:
    tensor = orjson.loads(body[:json_length])["inputs"][0]
    return np.frombuffer(body, np.float32, offset=json_length).reshape(tensor["shape"])


def write_json(output: Any) -> bytes:
    tensor = {"name": "y", "datatype": "FP32", "shape": output.shape, "data": output.ravel()}
    return orjson.dumps(
        {"model_name": "tiny", "model_version": "1", "outputs": [tensor]}, option=orjson.OPT_SERIALIZE_NUMPY
    )


def write_binary(output: Any) -> bytes:
    parameters = {"binary_data_size": output.nbytes}
    tensor = {"name": "y", "datatype": "FP32", "shape": output.shape, "parameters": parameters}
    return orjson.dumps({"model_name": "tiny", "model_version": "1", "outputs": [tensor]}) + output.tobytes()


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
    return model.SerializeToString()


if __name__ == "__main__":
    main()
