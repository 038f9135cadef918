"""The floors: what the same work costs with nothing around it.

`python -m benchmarks.floor cold MODEL` prints the nanoseconds from making a plain `InferenceSession` to the end of its
first run, in a fresh process in which everything is imported. `python -m benchmarks.floor hot MODEL` prints a port and
serves the model there: one uvicorn process (uvloop, httptools) with a raw ASGI app on one session.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson
import uvicorn

from benchmarks.models import ROOT, Model, model

ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""What the platform's replicas have too: without it the imports start threads that nobody asked for."""

Headers = list[tuple[bytes, bytes]]
_DATATYPES = {"float32": "FP32", "int64": "INT64"}


def cold_ms(found: Model) -> float:
    """Return one sample of the cold floor, from a process of its own."""
    with _run("cold", found) as process:
        return int(process.communicate(timeout=120)[0]) / 1e6


@contextlib.contextmanager
def hot_server(found: Model) -> Iterator[str]:
    """Run the hot floor; yield its URL."""
    with _run("hot", found) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v2/models/{found.name}/infer"
        finally:
            process.terminate()
            process.wait(30)


def _run(what: str, found: Model) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.floor", what, found.name]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE)


def _cold(found: Model) -> None:
    start_ns = time.monotonic_ns()
    session = ort.InferenceSession(found.path, providers=["CPUExecutionProvider"])
    session.run(None, {found.input_name: found.sample})
    print(time.monotonic_ns() - start_ns)


def _hot(found: Model) -> None:
    sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(sock.getsockname()[1], flush=True)
    config = uvicorn.Config(
        hot_app(found), loop="uvloop", http="httptools", lifespan="off", access_log=False, log_level="warning"
    )
    uvicorn.Server(config).run([sock])


def hot_app(found: Model) -> Callable[..., Awaitable[None]]:
    """Return the shortest ASGI app that speaks the Open Inference Protocol for this one model."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(found.path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[..., Any]) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        length = dict(scope["headers"]).get(b"inference-header-content-length")
        request = orjson.loads(body if length is None else body[: int(length)])
        tensor = request["inputs"][0]
        if length is None:
            values = np.array(tensor["data"], dtype=np.float32)
        else:
            values = np.frombuffer(body, dtype=np.float32, offset=int(length))
        outputs = session.run(names, {tensor["name"]: values.reshape(tensor["shape"])})
        headers, answer = _answer(found.name, names, outputs, binary=length is not None)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


def _answer(
    name: str, names: list[str], outputs: list[Any], *, binary: bool
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    tensors: list[dict[str, Any]] = []
    for key, array in zip(names, outputs, strict=True):
        tensor = {"name": key, "datatype": _DATATYPES[array.dtype.name], "shape": array.shape}
        data = {"parameters": {"binary_data_size": array.nbytes}} if binary else {"data": array.ravel().tolist()}
        tensors.append(tensor | data)
    head = orjson.dumps({"model_name": name, "model_version": "1", "outputs": tensors})
    if not binary:
        return [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(head))], head
    body = b"".join([head, *(array.tobytes() for array in outputs)])
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"inference-header-content-length", b"%d" % len(head)),
        (b"content-length", b"%d" % len(body)),
    ]
    return headers, body


if __name__ == "__main__":
    {"cold": _cold, "hot": _hot}[sys.argv[1]](model(sys.argv[2]))
