"""A client that sends bytes, and reads answers as HTTP has them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from tests.activator.harness import BODY, Harness

TIMEOUT_S = 5.0


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        code: str = json.loads(self.body)["code"]
        return code


class Wire:
    """One connection to a door."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def finish(self) -> None:
        """Send no more, but go on reading."""
        self.writer.write_eof()

    async def answer(self) -> Answer | None:
        """Return the next final answer; None where the door closes instead. Interim ones are skipped."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                head = await self._head()
                if head is None or head.status != 100:
                    return head

    async def rest(self) -> bytes:
        """Return what comes until the door closes."""
        async with asyncio.timeout(TIMEOUT_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def _head(self) -> Answer | None:
        try:
            text = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status, *lines = text.rstrip().split("\r\n")
            headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return Answer(int(status.split()[1]), headers, body)


@contextlib.asynccontextmanager
async def dial(it: Harness, **options: Any) -> AsyncIterator[Wire]:
    """Connect. `options`: of `open_connection`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port(it), **options)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def port(it: Harness) -> int:
    return int(it.url.rsplit(":", 1)[1])


def head(*lines: str, name: str = "m", length: int | None = len(BODY), version: str = "1.1") -> bytes:
    """Return the head of an inference request; `length` None: without Content-Length."""
    sized = [] if length is None else [f"content-length: {length}"]
    return "\r\n".join([f"POST /v2/models/{name}/infer HTTP/{version}", "host: x", *sized, *lines, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def with_small_window(it: Harness) -> socket.socket:
    """Return a connection whose client can take little that it does not read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port(it)))
    sock.setblocking(False)
    return sock


REQUEST = head() + BODY
CHUNKED = "transfer-encoding: chunked"
