"""How an answer gets onto a connection: in one write."""

from __future__ import annotations

import asyncio
from email.utils import formatdate

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from serve.core.clock import NS_PER_S, SystemClock


def write_answer(
    transport: asyncio.Transport,
    status: int,
    headers: bytes,
    body: bytes | memoryview,
    *,
    content_length: int,
    keep_alive: bool,
) -> None:
    """Write head and body. To close behind them unless `keep_alive` is the caller's part."""
    head = b"%b%bcontent-length: %d\r\ndate: %b\r\n%b\r\n" % (
        STATUS_LINE[status],
        headers,
        content_length,
        _DATE.value(),
        b"" if keep_alive else b"connection: close\r\n",
    )
    if len(body) < 65_536:
        transport.write(head + body)
    else:
        transport.writelines((head, body))


class _DateHeader:
    """The Date header's value, made once a second."""

    def __init__(self) -> None:
        self._made_s = 0
        self._value = b""

    def value(self) -> bytes:
        now_s = _CLOCK.wall_ns() // NS_PER_S
        if now_s != self._made_s:
            self._made_s = now_s
            self._value = formatdate(now_s, usegmt=True).encode()
        return self._value


_CLOCK = SystemClock()
_DATE = _DateHeader()
