"""Cost of one small request in the activator's own code, without sockets.

HTTP bytes in, frame out; frame in, HTTP bytes out.

Everything is real but the ends: the parser, the hot path, the gate, the books and the journal file. The figure is the
best of many rounds, so that noise of the machine drops out. `--profile` prints where the time goes.

    .venv/bin/python -P -m benchmarks.activator_path
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import uvloop

from activator.accounts import Accounts
from activator.app import Activator
from activator.door import FrontDoor
from activator.router import Router
from activator.server import FrontDoorProtocol
from billing.journal import Journal
from billing.prices import PriceBook, Prices
from serve.core.clock import SystemClock
from serve.core.events import Event, Ready, TensorSpec
from serve.core.frames import FrameParser, ResponseHead, Usage, pack_response
from serve.core.ids import ReplicaId, RequestIds, RevisionKey
from serve.core.metrics import Metrics
from serve.core.revision import Revision, Route, Signature, State
from serve.core.scaling import ReplicaInfo
from serve.core.spec import DeploymentSpec

ROUNDS = 200
REQUESTS = 100
_SPEC = (TensorSpec("x", "FP32", (-1, 64)),)
_KEY = RevisionKey("tiny", 1)
_BODY = b'{"inputs":[{"name":"x","shape":[1,64],"datatype":"FP32","data":[%b]}]}' % b",".join([b"0.125"] * 64)
_REQUEST = (
    b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)
_ANSWER = (
    b'{"model_name":"tiny","model_version":"1","outputs":[{"name":"y","shape":[1,16],"datatype":"FP32","data":[0]}]}'
)


class Nowhere:
    """A transport that takes everything."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def get_extra_info(self, _name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return False

    def resume_reading(self) -> None: ...

    def pause_reading(self) -> None: ...


class Deaf:
    """A listener that nothing happens to."""

    def poke(self, key: RevisionKey) -> None: ...

    def replica_empty(self, replica_id: ReplicaId) -> None: ...

    def replica_event(self, replica_id: ReplicaId, event: Event) -> None: ...

    def replica_overdue(self, replica_id: ReplicaId, sentence: str) -> None: ...

    def replica_link_lost(self, replica_id: ReplicaId) -> None: ...


class Looped:
    """A link whose far end is this program."""

    def __init__(self) -> None:
        self.receiver: Any = None
        self.sent: list[bytes] = []
        self.is_closed = self.has_ended = False
        self.undelivered: list[bytes] = []

    def send(self, frame: bytes, *, at_once: bool = False) -> None:  # noqa: ARG002
        self.sent.append(frame)

    def close(self) -> None: ...

    def read_rest(self) -> None: ...


def build(folder: Path) -> tuple[FrontDoorProtocol, Looped, Nowhere]:
    clock = SystemClock()
    metrics = Metrics()
    journal, book = Journal(folder, "benchmrk", clock), PriceBook([Prices(0, "USD", 24_000, 2_500, 0)])
    accounts = Accounts(journal, book, clock, metrics, 5.0)
    ids = RequestIds("benchmrk")
    router = Router(ids, clock, accounts, metrics)
    router.listener = Deaf()
    activator = Activator(router, ids, clock, metrics, 64 << 20)
    signature = Signature("onnxruntime_onnx", _SPEC, _SPEC, batchable=True)
    revision = Revision(_KEY, DeploymentSpec(name="tiny"), "d", "/", "model.onnx", 1, 50 << 20, signature)
    router.add_revision(revision)
    router.route(Route("tiny", State.COLD, ((1, 1),), {1: revision}))
    replica_id = ReplicaId("tiny-r1-aaaaaaaa")
    router.replica_assigned(ReplicaInfo(replica_id, _KEY, 0, 1, 50 << 20, clock.monotonic_ns(), clock.wall_ns()))
    link = Looped()
    ready = Ready(clock.monotonic_ns(), "onnxruntime_onnx", "1", _SPEC, _SPEC, True, 1, 1)
    router.replica_ready(replica_id, link, ready, {})
    door = FrontDoor(activator, activator.hot_path)
    protocol = door.connection()
    transport = Nowhere()
    protocol.connection_made(cast("asyncio.Transport", transport))
    return protocol, link, transport


def rounds(protocol: FrontDoorProtocol, link: Looped, count: int) -> list[float]:
    """Return µs per request of each round of REQUESTS requests, answered one by one."""
    parser = FrameParser()
    taken: list[float] = []
    busy_ns = 0
    for _ in range(count):
        spent_ns = 0
        for _ in range(REQUESTS):
            start_ns = time.perf_counter_ns()
            protocol.data_received(_REQUEST)
            spent_ns += time.perf_counter_ns() - start_ns
            now_ns = time.monotonic_ns()
            busy_ns += 1000
            usage = Usage(now_ns - 1000, now_ns, 1000, 1000, busy_ns, busy_ns, 1, 1, 1, 1)
            stream = int.from_bytes(link.sent.pop()[8:12], "little")
            answer = pack_response(stream, ResponseHead(200, 0, -1), _ANSWER, usage)
            start_ns = time.perf_counter_ns()
            link.receiver.frames_received(parser.feed(answer))
            spent_ns += time.perf_counter_ns() - start_ns
        taken.append(spent_ns / 1000 / REQUESTS)
    return taken


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--profile", action="store_true")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        protocol, link, transport = build(Path(folder))
        rounds(protocol, link, 5)
        taken = rounds(protocol, link, ROUNDS)
        assert transport.written > ROUNDS * REQUESTS * len(_ANSWER), "requests were not answered"
        print(
            f"one request in the activator's code: {min(taken):.1f} µs best, "
            f"{sorted(taken)[len(taken) // 2]:.1f} µs median"
        )
        if given.profile:
            with cProfile.Profile() as profile:
                rounds(protocol, link, 50)
            pstats.Stats(profile).sort_stats("tottime").print_stats(35)


if __name__ == "__main__":
    uvloop.run(main())
