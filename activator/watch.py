"""Nothing on a connection waits for ever: a head, a body, an answer to be taken, the next request.

One timer a connection, looked at when it fires, instead of one set and cancelled for every request.
"""

from __future__ import annotations

import asyncio
import socket
from abc import abstractmethod
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

from activator.limits import LINGER_S, Limits
from activator.reading import RequestReader
from serve.core.errors import UploadTimeout

_TCP_CLOSE, _TCP_CLOSE_WAIT = 7, 8
"""States of a socket whose peer knows nothing of it any more, or sends no more (linux/tcp_states.h)."""
_FIRST_PING_S, _LAST_PING_S = 0.005, 5.0
_PAUSED_S = 1.0
"""Between looks at whether a client is gone that is not read, and so cannot say it."""


class WatchedFlow(FlowControl):
    """Flow control that has clients looked at which are not read."""

    def __init__(self, transport: asyncio.Transport, watch: WatchedReader) -> None:
        super().__init__(transport)
        self._watch = watch

    def pause_reading(self) -> None:
        super().pause_reading()
        self._watch.look_within(_PAUSED_S)


class WatchedReader(RequestReader):
    """One client connection and its times."""

    def __init__(self, *args: Any, limits: Limits, **options: Any) -> None:
        super().__init__(*args, **options)
        self.limits = limits
        self.stall_s = limits.stall_s
        """Without a byte of a body, or of an answer being taken: less while the door closes."""
        self.idle_since_s = 0.0
        self._read_s = 0.0
        """When something of a request came that is not wholly there."""
        self._timer: asyncio.TimerHandle | None = None
        self._look_at_s = 0.0
        self._unsent_bytes = 0
        self._unsent_s = 0.0
        """What the client had not taken of its answer, and since when it was that much."""
        self._linger_until_s = 0.0
        self._is_half_closed = False
        """The client sends no more. It may still read, or be gone: its FIN says the same of both."""
        self._ping_s = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = WatchedFlow(transport, self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_partial and not self._is_deaf:
            self._part_received()

    def end(self) -> None:
        self._is_deaf = True
        if self.transport.get_write_buffer_size():
            self.look_within(self.stall_s)
        if self._is_half_closed or not (self._is_partial or self.flow.read_paused):
            self.transport.close()
            return
        try:
            self.transport.write_eof()
        except OSError:  # reset meanwhile
            self.transport.abort()
            return
        self.flow.resume_reading()
        self._linger_until_s = self.loop.time() + LINGER_S
        self.look_within(LINGER_S)

    def look_within(self, delay_s: float) -> None:
        """Look at this connection `delay_s` from now, or before."""
        at_s = self.loop.time() + delay_s
        if self._timer is not None:
            if self._look_at_s <= at_s:
                return
            self._timer.cancel()
        self._look_at_s = at_s
        self._timer = self.loop.call_later(delay_s, self._look)

    def rest(self) -> None:
        """Nothing is asked now: the time begins in which the next request should come."""
        self.idle_since_s = self.loop.time()
        if self._timer is None:
            self.look_within(self.limits.keep_alive_s)

    def unwatch(self) -> None:
        """The connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def ping(self) -> None:
        """Find out whether a client that sends no more is gone.

        Its machine answers anything sent to a closed socket with a reset. The interim answer is one that every client
        of HTTP/1.1 skips.
        """
        self._ping_s = _FIRST_PING_S
        self.look_within(_FIRST_PING_S)
        if self.may_be_pinged:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    @property
    @abstractmethod
    def may_be_pinged(self) -> bool:
        """Whether an interim answer may be sent now."""

    # Within

    def _part_received(self) -> None:
        now_s = self._read_s = self.loop.time()
        if self._is_in_head:
            if not self._begun_s:
                self._begun_s = now_s
                self.look_within(self.limits.head_s)
        else:
            self.look_within(self.stall_s)

    def _look(self) -> None:
        self._timer = None
        now_s = self.loop.time()
        found = (
            self._look_at_answer(now_s, self.stall_s),
            self._look_at_end(now_s),
            self._look_at_request(now_s),
            self._look_at_client(),
        )
        delays_s = [delay_s for delay_s in found if delay_s is not None]
        if delays_s:
            self.look_within(max(0.001, min(delays_s)))

    def _look_at_answer(self, now_s: float, limit_s: float) -> float | None:
        """Cut who has taken nothing of an answer for `limit_s`, as far as is known."""
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes != self._unsent_bytes:
            self._unsent_bytes, self._unsent_s = unsent_bytes, now_s
        if not unsent_bytes:
            return None
        left_s = self._unsent_s + limit_s - now_s
        if left_s <= 0.001:
            self.transport.abort()
            return None
        return left_s

    def _look_at_end(self, now_s: float) -> float | None:
        if not self._linger_until_s or self.transport.is_closing() or self.transport.get_write_buffer_size():
            return None
        if now_s >= self._linger_until_s - 0.001:
            self.transport.abort()
            return None
        return self._linger_until_s - now_s

    def _look_at_request(self, now_s: float) -> float | None:
        """Give up a request that does not come, or the connection on which none is asked."""
        if self._is_deaf or self.transport.is_closing():
            return None
        if not self._is_partial:
            return None if self.is_owing else self._look_at_rest(now_s)
        if self.flow.read_paused:
            self._begun_s = self._read_s = now_s
        since_s, limit_s = (self._begun_s, self.limits.head_s) if self._is_in_head else (self._read_s, self.stall_s)
        left_s = since_s + limit_s - now_s
        if left_s > 0.001:
            return left_s
        if self._is_in_head:
            self.refuse(UploadTimeout(f"The request's head was not there after {limit_s:g} s: send it at once"))
        else:
            self.give_up_body(UploadTimeout(f"Nothing of the body came for {limit_s:g} s: send it without a pause"))
        return None

    def _look_at_rest(self, now_s: float) -> float | None:
        left_s = self.idle_since_s + self.limits.keep_alive_s - now_s
        if left_s > 0.01:
            return left_s
        if not self.transport.get_write_buffer_size():
            self.transport.close()
        return None

    def _look_at_client(self) -> float | None:
        """Let go of a client that is gone, as far as its machine has said so."""
        is_paused = self.flow.read_paused
        if not self.is_owing or self.transport.is_closing() or not (self._ping_s or is_paused):
            return None
        sock: socket.socket = self.transport.get_extra_info("socket")
        state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        if state == _TCP_CLOSE:
            self.transport.abort()
            return None
        if self._ping_s:
            self._ping_s = min(_LAST_PING_S, self._ping_s * 4)
        elif state == _TCP_CLOSE_WAIT:
            self.ping()
        return self._ping_s or _PAUSED_S
