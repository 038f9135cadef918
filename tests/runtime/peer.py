"""A replica in a process of its own, and the other end of its socket."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from serve.core.events import Event, LoadOrder, Ready, decode_event, encode_load
from serve.core.frames import (
    FLAG_END,
    NO_JSON_LENGTH,
    Codec,
    FrameParser,
    Kind,
    RequestHead,
    Usage,
    pack,
    pack_request,
    unpack_response,
)

E = TypeVar("E", bound=Event)

DEADLINE_S = 20.0

CHILD = """
import socket, sys
from runtime import worker
sys.exit(worker.run(socket.socket(fileno=int(sys.argv[1]))))
"""
WITHOUT_ORJSON = "import sys; sys.modules['orjson'] = None\n" + CHILD


class Answer(NamedTuple):
    status: int
    usage: Usage
    body: bytes

    @property
    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.body)
        return message

    @property
    def data(self) -> Any:
        return self.message["outputs"][0]["data"]


class Peer:
    """Starts a replica, talks to it, waits for it. A context manager: the process is gone afterwards."""

    def __init__(self, folder: Path, child: str = CHILD) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(DEADLINE_S)
        self.log_file = folder / "replica.log"
        self.events: list[Event] = []
        self.answers: dict[int, Answer] = {}
        self.is_closed = False
        self._parser = FrameParser()
        # What the zygote has in its environment: libraries start no threads of their own at import.
        environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        with theirs, self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", child, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdout=log,
                stderr=log,
                env=environment,
            )

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()
        self.process.kill()
        self.process.wait()

    def load(self, order: LoadOrder) -> Ready:
        """Order a model and wait until it is ready."""
        self.send(pack(Kind.LOAD, payload=encode_load(order)))
        return self.ready()

    def ready(self) -> Ready:
        self.read_until(lambda: any(isinstance(event, Ready) for event in self.events))
        return next(event for event in self.events if isinstance(event, Ready))

    def send(self, *frames: bytes) -> None:
        self.sock.sendall(b"".join(frames))

    def ask(self, *frames: bytes, streams: Sequence[int] = (1,)) -> list[Answer]:
        """Send the frames at once; return the answers to these streams."""
        self.send(*frames)
        self.read_until(lambda: all(stream in self.answers for stream in streams))
        return [self.answers[stream] for stream in streams]

    def read_until(self, holds: Callable[[], object]) -> None:
        while not holds():
            assert self.read(), f"the replica ended: {self.log_file.read_text()}"

    def read(self) -> bool:
        """Take in what comes next. Return False at the end of the stream."""
        data = self.sock.recv(1 << 18)
        if not data:
            self.is_closed = True
            return False
        for frame in self._parser.feed(data):
            if frame.kind == Kind.EVENT:
                self.events.append(decode_event(frame.payload))
                continue
            assert (frame.kind, frame.flags) == (Kind.RESPONSE, FLAG_END)
            assert frame.stream not in self.answers, "a second answer"
            head, usage, body = unpack_response(frame)
            assert usage is not None
            self.answers[frame.stream] = Answer(head.status, usage, bytes(body))
        return True

    def exit_code(self) -> int:
        """Read what still comes, then wait for the end of the process."""
        while not self.is_closed and self.read():
            pass
        return self.process.wait(DEADLINE_S)

    def events_of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]


def scripted(folder: Path, *, max_batch_rows: int = 32, **script: Any) -> LoadOrder:
    """Return an order for a model that plays this script; without tensors it doubles rows of two FP32."""
    pair = {"input": "x", "output": "y", "datatype": "FP32", "shape": [-1, 2]}
    (folder / "model.json").write_text(json.dumps({"tensors": [pair], "factor": 2} | script))
    return LoadOrder("m-r1-aaaaaaaa", "m", 1, str(folder), "model.json", "scripted", max_batch_rows=max_batch_rows)


def body(*rows: float, width: int = 2) -> bytes:
    """Return the body of a request with one row for each value."""
    data = [[row, *[0.0] * (width - 1)] for row in rows]
    return json.dumps(
        {"inputs": [{"name": "x", "shape": [len(rows), width], "datatype": "FP32", "data": data}]}
    ).encode()


def head(timeout_us: int = 0, request_id: str = "w-1") -> RequestHead:
    return RequestHead(Codec.OIP, request_id, NO_JSON_LENGTH, timeout_us)


def request(stream: int, *rows: float, timeout_us: int = 0) -> bytes:
    """Return a whole request with one row for each value."""
    return pack_request(stream, head(timeout_us, f"w-{stream}"), body(*rows))


def in_parts(stream: int, *rows: float) -> list[bytes]:
    """Return the same in three frames: the last one completes it."""
    whole = body(*rows)
    return [
        pack_request(stream, head(request_id=f"w-{stream}"), whole[:10], flags=0),
        pack(Kind.BODY, stream, whole[10:20]),
        pack(Kind.BODY, stream, whole[20:], FLAG_END),
    ]


def cancel(stream: int) -> bytes:
    return pack(Kind.CANCEL, stream)


DRAIN = pack(Kind.DRAIN)
