"""An activator on a real port, with replicas played by the test over real socketpairs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx

from activator.accounts import Accounts
from activator.app import Activator
from activator.door import FrontDoor, listen
from activator.limits import Limits
from activator.router import Router
from billing.journal import Journal, Problem, journal_files, read_journal_file
from billing.prices import PriceBook, Prices
from serve.core.clock import SystemClock
from serve.core.events import Event, ExitReason, Phase, Ready, TensorSpec
from serve.core.frames import (
    Frame,
    FrameParser,
    Kind,
    RequestHead,
    ResponseHead,
    Usage,
    pack_response,
    unpack_request,
)
from serve.core.ids import ReplicaId, RequestIds, RevisionKey, new_replica_id
from serve.core.link import FrameLink
from serve.core.metrics import Metrics
from serve.core.revision import Revision, Route, Signature, State
from serve.core.scaling import Exited, ReplicaInfo
from serve.core.spec import DeploymentSpec

SPECS = (TensorSpec("x", "FP32", (-1, 4)),)
BODY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}'


class Listener:
    """Notes what the activator tells the autoscaler."""

    def __init__(self) -> None:
        self.pokes: list[RevisionKey] = []
        self.empty: list[ReplicaId] = []
        self.overdue: list[ReplicaId] = []
        self.lost: list[ReplicaId] = []
        self.events: list[Event] = []

    def poke(self, key: RevisionKey) -> None:
        self.pokes.append(key)

    def replica_empty(self, replica_id: ReplicaId) -> None:
        self.empty.append(replica_id)

    def replica_event(self, replica_id: ReplicaId, event: Event) -> None:
        self.events.append(event)

    def replica_overdue(self, replica_id: ReplicaId, sentence: str) -> None:
        self.overdue.append(replica_id)

    def replica_link_lost(self, replica_id: ReplicaId) -> None:
        self.lost.append(replica_id)


class Inside:
    """A request that reached a played replica."""

    def __init__(self, replica: PlayedReplica, stream: int, head: RequestHead, body: bytes) -> None:
        self.replica, self.stream, self.head, self.body = replica, stream, head, body

    def answer(self, status: int = 200, body: bytes = b'{"outputs":[]}', rows: int = 1) -> None:
        self.replica.answer(self, status, body, rows)


class PlayedReplica:
    """The far end of a replica's socket, in the hands of the test."""

    def __init__(self, replica_id: ReplicaId, key: RevisionKey) -> None:
        self.id, self.key = replica_id, key
        self.inside: asyncio.Queue[Inside] = asyncio.Queue()
        self.cancelled: list[int] = []
        self.auto: Callable[[Inside], None] | None = None
        self.busy_ns = 0
        self.answered = 0
        self._clock = SystemClock()

    async def open(self, far: socket.socket) -> None:
        self._reader, self._writer = await asyncio.open_connection(sock=far)

    async def play(self) -> None:
        parser = FrameParser()
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(1 << 20):
                for frame in parser.feed(data):
                    self._take(frame)
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    def _take(self, frame: Frame) -> None:
        if frame.kind == Kind.CANCEL:
            self.cancelled.append(frame.stream)
        if frame.kind == Kind.REQUEST:
            head, body = unpack_request(frame.payload)
            inside = Inside(self, frame.stream, head, bytes(body))
            if self.auto is not None:
                self.auto(inside)
            else:
                self.inside.put_nowait(inside)

    async def next(self) -> Inside:
        async with asyncio.timeout(5):
            return await self.inside.get()

    def answer(self, inside: Inside, status: int, body: bytes, rows: int) -> None:
        self._writer.write(self.packed(inside, status, body, rows))

    def answer_all(self, insides: list[Inside]) -> None:
        """Answer several requests in one write, as a replica does after a batch."""
        self._writer.write(b"".join(self.packed(inside, 200, b"{}", 1) for inside in insides))

    def packed(self, inside: Inside, status: int, body: bytes, rows: int) -> bytes:
        return self.packed_as(inside.stream, status=status, body=body, rows=rows)

    def packed_as(self, stream: int, *, status: int, body: bytes = b"{}", rows: int = 1) -> bytes:
        now_ns = self._clock.monotonic_ns()
        self.busy_ns += 1_000_000
        self.answered += 1
        usage = Usage(
            now_ns - 1_000_000, now_ns, 1_000_000, 1_000_000, self.busy_ns, self.busy_ns, rows, rows, self.answered, 1
        )
        return pack_response(stream, ResponseHead(status, 0, -1), body, usage)

    def write(self, data: bytes) -> None:
        """Say anything at all."""
        self._writer.write(data)

    def hang_up(self) -> None:
        self._writer.close()


class Harness:
    """One activator and everything around it."""

    def __init__(self, tmp_path: Path, body_limit_bytes: int) -> None:
        self.clock = SystemClock()
        self.journal_folder = tmp_path / "journal"
        self.journal = Journal(self.journal_folder, "writer01", self.clock)
        self.metrics = Metrics()
        book = PriceBook([Prices(0, "USD", 24_000, 2_500, 0)])
        self.accounts = Accounts(self.journal, book, self.clock, self.metrics, 5.0)
        self.listener = Listener()
        ids = RequestIds("writer01")
        self.router = Router(ids, self.clock, self.accounts, self.metrics)
        self.router.listener = self.listener
        self.activator = Activator(self.router, ids, self.clock, self.metrics, body_limit_bytes)
        self.url = ""
        self.links: dict[ReplicaId, FrameLink] = {}
        self.tasks: asyncio.TaskGroup
        self.door: FrontDoor

    def deploy(self, name: str = "m", number: int = 1, **settings: Any) -> RevisionKey:
        settings = {"concurrency": 4} | settings
        revision = Revision(
            key=RevisionKey(name, number),
            spec=DeploymentSpec(name=name, **settings),
            digest="d",
            model_dir="/nowhere",
            model_file="model.onnx",
            threads=1,
            memory_bytes=50 << 20,
            signature=Signature("onnxruntime_onnx", SPECS, SPECS, batchable=True),
        )
        self.router.add_revision(revision)
        old = self.router.routes.get(name)
        revisions = (old.revisions if old else {}) | {number: revision}
        self.router.route(Route(name, State.COLD, ((number, 1),), revisions))
        return revision.key

    def assign(self, key: RevisionKey) -> ReplicaInfo:
        info = ReplicaInfo(new_replica_id(key), key, 0, 1, 50 << 20, self.clock.monotonic_ns(), self.clock.wall_ns())
        self.router.replica_assigned(info)
        return info

    async def ready(self, info: ReplicaInfo, peak_memory_bytes: int = 1) -> PlayedReplica:
        near, far = socket.socketpair()
        replica = PlayedReplica(info.id, info.key)
        await replica.open(far)
        self.tasks.create_task(replica.play())
        link = self.links[info.id] = await FrameLink.open(near, self)
        ready = Ready(self.clock.monotonic_ns(), "onnxruntime_onnx", "1", SPECS, SPECS, True, 1, peak_memory_bytes)
        self.router.replica_ready(info.id, link, ready, {Phase.SPAWN: 1_000_000, Phase.LOAD: 2_000_000})
        return replica

    async def start(self, key: RevisionKey) -> PlayedReplica:
        return await self.ready(self.assign(key))

    def kill(self, replica: PlayedReplica, reason: ExitReason = ExitReason.CRASHED, signal: int = 11) -> None:
        """The replica's process is gone, as a driver reports it."""
        self.links[replica.id].close()
        exited = Exited(replica.id, reason, self.clock.monotonic_ns(), None, signal, f"signal {signal}")
        self.router.replica_gone(exited)

    async def turn(self) -> None:
        """Let what was sent arrive."""
        await asyncio.sleep(0.001)

    def frames_received(self, frames: list[Frame]) -> None:
        raise AssertionError("the activator did not take the link over")

    def link_lost(self, reason: str) -> None:
        raise AssertionError("the activator did not take the link over")

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Every journal record of a kind, read from the disk now."""
        found = []
        for _, _, path in journal_files(self.journal_folder):
            for record, _ in read_journal_file(path):
                assert not isinstance(record, Problem)
                if record["kind"] == kind:
                    found.append(record)
        return found


@contextlib.asynccontextmanager
async def harness(
    tmp_path: Path, body_limit_bytes: int = 1 << 20, limits: Limits | None = None
) -> AsyncIterator[Harness]:
    it = Harness(tmp_path, body_limit_bytes)
    sock = listen("127.0.0.1", 0)
    it.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    it.door = door = FrontDoor(it.activator, it.activator.hot_path, limits)
    async with asyncio.TaskGroup() as tasks:
        it.tasks = tasks
        server = tasks.create_task(door.run_until_stopped([sock], 1.0))
        try:
            yield it
        finally:
            for link in it.links.values():
                link.close()
            door.stop()
            await server
            it.accounts.close()


async def infer(
    client: httpx.AsyncClient, it: Harness, name: str = "m", body: bytes = BODY, **headers: str
) -> httpx.Response:
    return await client.post(
        f"{it.url}/v2/models/{name}/infer",
        content=body,
        headers={key.replace("_", "-"): value for key, value in headers.items()},
    )


def text(response: httpx.Response) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(response.content)
    return body


async def until(condition: Callable[[], bool]) -> None:
    """Give the loop turns until `condition` holds; fail after five seconds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is awaited is the platform's own doing
            await asyncio.sleep(0.001)
