"""A real HTTP server that misbehaves as told, one answer per request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Gives the answers of `script` in turn, the last one for ever. `requests`: heads as they came."""

    def __init__(self, *script: Answer) -> None:
        self.requests: list[str] = []
        self.url = ""
        self._script = list(script)
        self._connections: set[asyncio.Task[None]] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            answer = self._script.pop(0) if len(self._script) > 1 else self._script[0]
            await answer(writer)
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        self._connections.discard(task)

    async def close(self) -> None:
        """End connections that still run."""
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections)

    @property
    def paths(self) -> list[str]:
        return [head.split()[1] for head in self.requests]


@contextlib.asynccontextmanager
async def serving(*script: Answer) -> AsyncIterator[Server]:
    server = Server(*script)
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    async with listener:
        server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        try:
            yield server
        finally:
            await server.close()


def reply(body: bytes = b"", status: str = "200 OK", length: int | None = None, **headers: str) -> Answer:
    """Send `body`, and claim that it has `length` bytes."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body) if length is None else length}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join(lines) + "\r\n\r\n"

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode() + body)

    return answer


def chunked(*parts: bytes, whole: bool = True) -> Answer:
    """Send parts without saying how many bytes there will be."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n")
        for part in parts:
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        if whole:
            writer.write(b"0\r\n\r\n")

    return answer


async def trickle(writer: asyncio.StreamWriter) -> None:
    """Send a byte now and then, for ever."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    while True:
        writer.write(b".")
        await writer.drain()
        await asyncio.sleep(0.02)


async def hang(writer: asyncio.StreamWriter) -> None:
    """Take the request and say nothing."""
    await asyncio.sleep(30)


async def slam(writer: asyncio.StreamWriter) -> None:
    """Close without an answer."""
