"""HTTP as bytes: what no well-behaved client would send."""

from __future__ import annotations

import contextlib
import json
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def exchange(url: str, data: bytes, answers: int = 1) -> list[Answer]:
    """Send bytes on one connection; return that many answers, or fewer where the server closes before."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), TIMEOUT_S) as connection:
        connection.settimeout(TIMEOUT_S)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused early: the answer is there
            connection.sendall(data)
        received = b""
        found: list[Answer] = []
        while len(found) < answers:
            try:
                part = connection.recv(1 << 16)
            except ConnectionResetError:
                break
            received += part
            while (one := _split(received, closed=not part)) is not None and len(found) < answers:
                answer, received = one
                found.append(answer)
            if not part:
                break
    return found


def _split(data: bytes, *, closed: bool) -> tuple[Answer, bytes] | None:
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    length = int(headers["content-length"]) if "content-length" in headers else len(rest)
    if len(rest) < length or ("content-length" not in headers and not closed):
        return None
    return Answer(int(first.split()[1]), headers, rest[:length]), rest[length:]


def post(path: str, body: bytes, *lines: str, version: str = "1.1", host: str | None = "localhost") -> bytes:
    """Return the bytes of a POST."""
    head = [f"POST {path} HTTP/{version}", *([f"Host: {host}"] if host is not None else [])]
    head += [f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode("latin-1") + body
