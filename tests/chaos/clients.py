"""Clients in a process of their own: `python -m tests.chaos.clients ORDER`, where ORDER is JSON.

Each writes one line per attempt: what it sent, and what came back. Progress goes to stdout, one JSON object a line.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import socket
import struct
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import orjson
import uvloop

from tests.chaos.workload import DEPLOYED, NAP, Asked, Deployed, hasty, normal, wrong

ATTEMPT_TIMEOUT_S = 60.0
"""An answer that takes longer counts as none: whatever happens here is over sooner."""
_REFUSED_PAUSE_S = 0.02
_PROGRESS_S = 1.0
_READ_BYTES = 1 << 18
_LEAVERS, _HASTY, _WRONG = 0.01, 0.01, 0.01
"""Shares of requests that leave early, that will not wait long, that are answered with an error."""


@dataclass(frozen=True)
class Order:
    """What one process of clients is to do."""

    port: int
    seed: int
    prefix: str
    """Begins every client id of this process."""
    requests: int
    connections: int
    retries: bool
    """Whether a broken connection is tried again: a platform may die. If not, it is a failure."""
    log: str
    pause_s: float = 0.0
    """Longest pause of a client before each request."""


class Attempt(NamedTuple):
    """One line of the log. An attempt has an id of its own, also where it repeats another."""

    client_id: str
    outcome: str
    """answered, broken (the connection ended before the answer) or left (on purpose)."""
    status: int
    request_id: str
    replica: str
    cost_nano: int
    start_ns: int
    end_ns: int
    problem: str
    """Why this is a failure; empty where it is none."""


class Answer(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Broken(Exception):
    """The connection ended before an answer was complete."""


class Connection:
    """One connection at a time, kept alive, opened again when it ended."""

    def __init__(self, port: int, counts: Counter[str]) -> None:
        self._address = ("127.0.0.1", port)
        self._counts = counts
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None

    async def open(self) -> socket.socket:
        """Return the open socket. A refused connection is tried until somebody listens: nothing was sent yet."""
        while self._socket is None:
            sock = socket.socket()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await self._loop.sock_connect(sock, self._address)
                self._socket = sock
            except OSError:
                sock.close()
                self._counts["refused"] += 1
                await asyncio.sleep(_REFUSED_PAUSE_S)
        return self._socket

    async def exchange(self, data: bytes) -> Answer:
        """Send a request, return its answer. Raise Broken."""
        sock = await self.open()
        try:
            await self._loop.sock_sendall(sock, data)
            answer, closes = await self._receive(sock)
        except OSError as error:
            self.close()
            raise Broken(str(error)) from error
        except BaseException:
            self.close()
            raise
        if closes:
            self.close()
        return answer

    async def _receive(self, sock: socket.socket) -> tuple[Answer, bool]:
        received = b""
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += await self._read(sock)
        first, *lines = received[:end].split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        parts, missing = [received[end + 4 :]], int(headers[b"content-length"]) - (len(received) - end - 4)
        while missing > 0:
            parts.append(await self._read(sock))
            missing -= len(parts[-1])
        if missing < 0:
            raise Broken("more came than one answer")
        return Answer(int(first.split()[1]), headers, b"".join(parts)), headers.get(b"connection") == b"close"

    async def _read(self, sock: socket.socket) -> bytes:
        data = await self._loop.sock_recv(sock, _READ_BYTES)
        if not data:
            raise Broken("closed before the answer was complete")
        return data

    async def leave(self, data: bytes, stay_s: float, how: str) -> None:
        """Send (half of) a request and go: close, reset, or half-close and then close."""
        sock = await self.open()
        try:
            await self._loop.sock_sendall(sock, data)
            if how == "half-closed":
                sock.shutdown(socket.SHUT_WR)
            await asyncio.sleep(stay_s)
            if how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass
        finally:
            self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Clients:
    """All clients of one process: they take numbers from one counter until the order is fulfilled."""

    def __init__(self, order: Order, log: TextIO) -> None:
        self._order = order
        self._log = log
        self._numbers = itertools.count()
        self._left = order.requests
        self._counts: Counter[str] = Counter(refused=0)

    async def run(self) -> None:
        """Fulfil the order, or begin nothing new after SIGTERM."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop)
        async with asyncio.TaskGroup() as group:
            progress = group.create_task(self._progress())
            async with asyncio.TaskGroup() as clients:
                for place in range(self._order.connections):
                    chance = random.Random(f"{self._order.seed} {self._order.prefix} {place}")
                    clients.create_task(self._client(chance, is_napper=place == 0))
            progress.cancel()
        self._report()

    def _stop(self) -> None:
        self._left = 0

    async def _client(self, chance: random.Random, *, is_napper: bool) -> None:
        connection = Connection(self._order.port, self._counts)
        names, shares = [*DEPLOYED], [deployed.share for deployed in DEPLOYED]
        while (number := next(self._numbers)) < self._left:
            if self._order.pause_s:
                await asyncio.sleep(chance.uniform(0, self._order.pause_s))
            if is_napper:
                if chance.random() < 0.3:  # long enough that its deployment is at zero again
                    await asyncio.sleep(chance.uniform(0.1, 0.6))
                deployed = NAP
            else:
                if chance.random() < 0.005:  # so that the load comes and goes
                    await asyncio.sleep(chance.uniform(0, 0.3))
                [deployed] = chance.choices(names, shares)
            await self._one(connection, deployed, number, chance)
        connection.close()

    async def _one(self, connection: Connection, deployed: Deployed, number: int, chance: random.Random) -> None:
        client_id = f"{self._order.prefix}{number}"
        kind = chance.random()
        if kind < _LEAVERS:
            await self._leave(connection, client_id, normal(deployed, number, chance), chance)
        elif kind < _LEAVERS + _HASTY:
            await self._ask(connection, client_id, hasty(deployed, number, chance))
        elif kind < _LEAVERS + _HASTY + _WRONG:
            await self._ask(connection, client_id, wrong(deployed, chance))
        else:
            await self._ask(connection, client_id, normal(deployed, number, chance))

    async def _leave(self, connection: Connection, client_id: str, asked: Asked, chance: random.Random) -> None:
        data = asked.wire(client_id)
        how = chance.choice(("closed", "closed", "reset", "half-closed", "unfinished"))
        start_ns = time.monotonic_ns()
        await connection.leave(data[: len(data) - 5] if how == "unfinished" else data, chance.uniform(0, 0.03), how)
        self._write(Attempt(client_id, "left", 0, "", "", 0, start_ns, time.monotonic_ns(), ""))

    async def _ask(self, connection: Connection, client_id: str, asked: Asked) -> None:
        """Ask until there is an answer; whoever may retry does so for as long as it takes."""
        for attempt in itertools.count():
            attempt_id = f"{client_id}.{attempt}" if attempt else client_id
            await connection.open()
            start_ns = time.monotonic_ns()
            try:
                async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
                    answer = await connection.exchange(asked.wire(attempt_id))
            except (Broken, TimeoutError) as error:
                may_retry = self._order.retries and not isinstance(error, TimeoutError)
                problem = "" if may_retry else f"no answer: {error or 'timeout'}"
                self._write(Attempt(attempt_id, "broken", 0, "", "", 0, start_ns, time.monotonic_ns(), problem))
                if may_retry:
                    continue
                return
            self._write(_attempt(attempt_id, answer, asked, start_ns, time.monotonic_ns()))
            return

    def _write(self, attempt: Attempt) -> None:
        self._counts[attempt.outcome] += 1
        self._counts["failed"] += bool(attempt.problem)
        self._log.write("\t".join(map(str, attempt)) + "\n")

    async def _progress(self) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_S)
            self._report()

    def _report(self) -> None:
        sys.stdout.buffer.write(orjson.dumps(self._counts) + b"\n")
        sys.stdout.buffer.flush()


def _attempt(client_id: str, answer: Answer, asked: Asked, start_ns: int, end_ns: int) -> Attempt:
    headers, expected = answer.headers, asked.expected
    cost, _, _currency = headers.get(b"x-serve-cost", b"0.000000000 -").partition(b" ")
    problem = ""
    if answer.status != expected.status:
        said = orjson.loads(answer.body) if answer.status >= 400 else {}
        if said.get("code") not in expected.codes:
            problem = f"{answer.status} instead of {expected.status}: {said.get('code')}: {said.get('error')}"
    elif not expected.is_right(headers, answer.body):
        problem = f"a wrong answer: {answer.body[:200]!r}"
    return Attempt(
        client_id,
        "answered",
        answer.status,
        headers.get(b"x-serve-request-id", b"").decode(),
        headers.get(b"x-serve-replica", b"").decode(),
        int(cost.replace(b".", b"")),
        start_ns,
        end_ns,
        problem.replace("\t", " ").replace("\n", " "),
    )


def main() -> None:
    order = Order(**orjson.loads(sys.argv[1]))
    with Path(order.log).open("w") as log:
        uvloop.run(Clients(order, log).run())


def command(order: Order) -> list[str]:
    """Return the command that runs `order`."""
    return [sys.executable, "-m", "tests.chaos.clients", orjson.dumps(asdict(order)).decode()]


if __name__ == "__main__":
    main()
