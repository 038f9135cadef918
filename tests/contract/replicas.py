"""What tests of drivers share: scripted models to load, an observer that remembers, a caller on the link."""

from __future__ import annotations

import asyncio
import json
import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serve.core.events import Event, Failed, LoadOrder, Ready
from serve.core.frames import NO_JSON_LENGTH, Codec, Frame, Kind, RequestHead, pack_request, unpack_response
from serve.core.ids import ReplicaId
from serve.core.link import Link
from serve.core.scaling import Exited

DEADLINE_S = 20.0


class Observer:
    """Remembers what it hears, in order, and lets tests wait for it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.exits: list[Exited] = []
        self._changed = asyncio.Event()

    def replica_event(self, replica_id: ReplicaId, event: Event) -> None:
        assert not self.exits, "an event after the exit"
        self.events.append(event)
        self._changed.set()

    def replica_exited(self, exited: Exited) -> None:
        self.exits.append(exited)
        self._changed.set()

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    async def ready(self) -> Ready:
        await self.until(lambda: self.exits or any(isinstance(event, Ready | Failed) for event in self.events))
        readies = [event for event in self.events if isinstance(event, Ready)]
        assert readies, (self.events, self.exits)
        return readies[0]

    async def exited(self) -> Exited:
        await self.until(lambda: self.exits)
        return self.exits[0]


class Caller:
    """Takes over a link as the activator does and asks one thing at a time."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.events: list[Frame] = []
        self._answer: asyncio.Future[tuple[int, dict[str, Any]]] = asyncio.get_running_loop().create_future()
        self.lost = asyncio.Event()
        link.receiver = self

    def frames_received(self, frames: list[Frame]) -> None:
        for frame in frames:
            if frame.kind == Kind.RESPONSE:
                head, _, body = unpack_response(frame)
                self._answer.set_result((head.status, json.loads(bytes(body))))

    def link_lost(self, reason: str) -> None:
        self.lost.set()

    @property
    def is_answered(self) -> bool:
        return self._answer.done()

    async def ask(self, *values: float) -> list[float]:
        """Send a row of four values; return the row that comes back."""
        self.send(*values)
        async with asyncio.timeout(DEADLINE_S):
            status, body = await self._answer
        assert status == 200, body
        answer: list[float] = body["outputs"][0]["data"]
        return answer

    def send(self, *values: float) -> None:
        self._answer = asyncio.get_running_loop().create_future()
        body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": values}]}
        head = RequestHead(Codec.OIP, "test-1", NO_JSON_LENGTH, 0)
        self.link.send(pack_request(1, head, json.dumps(body).encode()))


def scripted(folder: Path, replica_id: str = "echo-r1-aaaaaaaa", **script: Any) -> LoadOrder:
    """Return an order to load a model that does as `script` says."""
    model_dir = folder / "models" / replica_id
    model_dir.mkdir(parents=True, exist_ok=True)
    (model_dir / "model.json").write_text(json.dumps(script))
    return LoadOrder(replica_id, "echo", 1, str(model_dir), "model.json", "scripted")


async def wait_dead(pid: int) -> None:
    """Return once the process with `pid` has ended, whoever its parent is."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ready, _, _ = await asyncio.to_thread(select.select, [pidfd], (), (), DEADLINE_S)
        assert ready, f"process {pid} lives on"
    finally:
        os.close(pidfd)


def children_of_ours() -> set[int]:
    """Return the pids of all children of this process, zombies included."""
    children = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            stat = (entry / "stat").read_bytes()  # a process may be named by any bytes
        except OSError:
            continue
        parent = stat[stat.rindex(b")") + 2 :].split()[1]
        if int(parent) == os.getpid():
            children.add(int(entry.name))
    return children
