"""Clients that send anything, in any pieces, and leave in any way: they get nothing to keep, and leave nothing behind.

One seed is one run. More of them: `python -m tests.activator.test_hostile 1000`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import logging
import random
import socket
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop

from activator.limits import Limits
from tests.activator.harness import BODY, Harness, Inside, harness, infer, until
from tests.activator.wire import CHUNKED, REQUEST, chunk, head, port

LIMITS = Limits(connections=40, head_s=0.3, stall_s=0.3, keep_alive_s=0.3, unread_bytes=1 << 20)
CONNECTIONS, AT_ONCE = 150, 15
_PACKED = gzip.compress(BODY)
_GET = b"GET /v2/%b HTTP/1.1\r\nhost: x\r\n\r\n"
SEEDS = [
    REQUEST,
    REQUEST * 5,
    head(version="1.0") + BODY,
    head("connection: close") + BODY,
    head(CHUNKED, length=None) + chunk(BODY[:20]) + chunk(BODY[20:]) + b"0\r\n\r\n",
    head(CHUNKED, length=None) + b"2;a=b\r\nxx\r\n0\r\nx: y\r\n\r\n" + REQUEST,
    head("content-encoding: gzip", length=len(_PACKED)) + _PACKED,
    head("expect: 100-continue") + BODY,
    head("connection: upgrade", "upgrade: h2c") + BODY + REQUEST,
    head(length=200_000) + b" " * 200_000,
    head(length=1_000_000) + b" " * 1_000_000,
    head(CHUNKED, length=None) + chunk(b"x" * 70_000) * 20 + b"0\r\n\r\n",
    head(name="nobody") + BODY,
    head("prefer: wait=0", name="cold") + BODY,
    head(name="cold") + BODY,
    _GET % b"health/ready" * 30,
    _GET % b"models/m" + REQUEST + b"CONNECT x:1 HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    head(*[f"x{number}: y" for number in range(300)]) + BODY,
    head("x: " + "y" * 100_000) + BODY,
]


class Client:
    """One connection of a run, decided by `rng`."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def message(self) -> bytes:
        rng = self._rng
        data = bytearray(b"".join(rng.choices(SEEDS, k=rng.choice([1, 1, 1, 2, 4]))))
        for _ in range(rng.choice([0, 0, 1, 1, 2, 8])):
            at = rng.randrange(min(len(data), 600))
            match rng.randrange(4):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.choice([1, 2, 30])]
                case 2:
                    data[at:at] = rng.choice([b"\r\n", b"\0", b" ", b":", b"\n", bytes([rng.randrange(256)])])
                case _:
                    data[at:at] = data[at : at + rng.choice([2, 20, 200])]
            data = data or bytearray(b"x")
        return bytes(data[: rng.randrange(1, len(data) + 1)]) if rng.random() < 0.3 else bytes(data)

    def parts(self, data: bytes) -> list[bytes]:
        rng = self._rng
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice([0, 0, 1, 3, 20])))
        return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]

    async def run(self, address: tuple[str, int]) -> None:
        rng, loop = self._rng, asyncio.get_running_loop()
        with socket.socket() as sock:
            if rng.random() < 0.2:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(rng.choice([0.05, 0.5])):
                    await loop.sock_connect(sock, address)
                    for part in self.parts(self.message()):
                        await loop.sock_sendall(sock, part)
                        await asyncio.sleep(rng.choice([0, 0, 0, 0.001, 0.01]))
                    if rng.random() < 0.3:
                        sock.shutdown(socket.SHUT_WR)
                    while rng.random() < 0.7 and await loop.sock_recv(sock, 1 << 16):
                        pass
            if rng.random() < 0.3:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Complaints(logging.Handler):
    """What anybody says in the log above the level of information."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


async def attack(folder: Path, seed: int) -> None:
    """Let clients do their worst, then look at what is left."""
    rng = random.Random(seed)
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: complaints.records.append(str(context)))
    try:
        async with harness(folder, limits=LIMITS) as it:
            keys = it.deploy(queue_bytes=1 << 20, queue=20), it.deploy("cold", queue=5, timeout=1.0)
            replica = await it.start(keys[0])
            replica.auto = _answers(rng)
            before = _left_over(it)
            limit = asyncio.Semaphore(AT_ONCE)

            async def client(number: int) -> None:
                async with limit:
                    await Client(random.Random(f"{seed}/{number}")).run(("127.0.0.1", port(it)))

            await asyncio.gather(*(client(number) for number in range(CONNECTIONS)))
            async with httpx.AsyncClient(limits=httpx.Limits(max_keepalive_connections=0)) as caller:
                assert (await infer(caller, it)).status_code == 200
            await until(lambda: not it.door.connections)
            await until(lambda: [it.router.queue_status(key) for key in keys] == [(0, 0, 0)] * 2)
            await until(lambda: _left_over(it) == before)
    finally:
        logging.getLogger().removeHandler(complaints)
    assert complaints.records == []


def _answers(rng: random.Random) -> Callable[[Inside], None]:
    def answer(inside: Inside) -> None:
        delay_s = rng.choice([0, 0, 0.001, 0.05])
        body = b"x" * rng.choice([10, 10, 10, 300_000])
        asyncio.get_running_loop().call_later(delay_s, inside.answer, 200, body)

    return answer


def _left_over(it: Harness) -> dict[str, Any]:
    """Return what a run may not leave behind: descriptors, tasks, timers, places among the connections."""
    timers = getattr(asyncio.get_running_loop(), "_scheduled", [])  # uvloop tells nobody of its own
    return {
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "tasks": len(asyncio.all_tasks()),
        "timers": sum(not timer.cancelled() and "Protocol" in repr(timer) for timer in timers),
        "crowd": (len(it.door.crowd._slow), len(it.door.crowd._leaving), len(it.door.crowd._busy)),
    }


@pytest.mark.parametrize(
    ("seed", "loop_factory"), [(0, asyncio.new_event_loop), (1, uvloop.new_event_loop)], ids=["asyncio", "uvloop"]
)
def test_clients_that_do_their_worst_leave_nothing_behind(
    tmp_path: Path, seed: int, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(attack(tmp_path, seed))


def main() -> None:
    for seed in range(int(sys.argv[1])):
        with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(attack(Path(folder), seed))


if __name__ == "__main__":
    main()
