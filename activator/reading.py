"""Reading requests off a connection: what httptools and uvicorn leave open is decided here.

A head has a limit. The wish for another protocol is not granted and costs nothing: clients that speak HTTP/2 where
they can (curl --http2, Java's) send it with every first request. What is no HTTP is refused as everything else is.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from activator.answer import write_answer
from serve.core.errors import BadRequest, ServeError, TooLarge

log = logging.getLogger(__name__)

HEAD_BYTES = 64 * 1024
"""A head, or what follows a chunked body, that is longer and came in several reads, is refused: it would be kept."""
_ABOUT_UPGRADE = frozenset({b"upgrade", b"connection", b"http2-settings"})
_CONNECT = b"CONNECT"


class RequestReader(HttpToolsProtocol):
    """One client connection, up to the end of a head. `url` and `headers` are those of the head being read."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._is_in_head = False
        self._head_bytes = 0
        self._is_progress = False
        """The read that is looked at began or ended a head, or brought a part of a body."""

    @abstractmethod
    def head_complete(self) -> None:
        """A request's head is there. Called by the parser."""

    @property
    @abstractmethod
    def is_owing(self) -> bool:
        """Whether a request on this connection still waits for its answer."""

    def data_received(self, data: bytes) -> None:
        self._is_progress = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_without_upgrade(data, upgrade)
        except httptools.HttpParserError as error:
            self._refuse_error(error)
        # Only whole reads within one head, or behind one body, are counted: others may be the end of something long.
        if self._is_progress:
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES:
            self._refuse(TooLarge(f"The request's head has more than {HEAD_BYTES} bytes: send fewer headers"))

    # Parser callbacks

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self._is_in_head = self._is_progress = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:  # what follows a chunked body is nobody's business
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._is_progress = True
        if not self.parser.should_upgrade():
            self.head_complete()

    # Within

    def _read_without_upgrade(self, data: bytes, upgrade: httptools.HttpParserUpgrade) -> None:
        """Read the request again without its wish: the parser takes what follows the head for the other protocol."""
        wish: httptools.HttpParserUpgrade | None = upgrade
        while wish is not None:
            method = self.parser.get_method()
            if method == _CONNECT:
                self._refuse_bytes()
                return
            data = self._head_without_upgrade(method) + data[wish.args[0] :]
            wish = None
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as another:
                wish = another
            except httptools.HttpParserError as error:
                self._refuse_error(error)

    def _head_without_upgrade(self, method: bytes) -> bytes:
        lines = [b"%b %b HTTP/1.1" % (method, self.url)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] not in _ABOUT_UPGRADE]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _refuse_error(self, error: httptools.HttpParserError) -> None:
        """Refuse what the parser, or a callback of its, raised on: unreadable bytes, or a defect of ours."""
        cause = error.__context__
        if cause is None or isinstance(cause, httptools.HttpParserError | UnicodeError):
            self._refuse_bytes()
            return
        log.error("request failed inside the activator", exc_info=cause)
        self._refuse(ServeError("Internal error: see the platform's log"))

    def _refuse_bytes(self) -> None:
        self._refuse(BadRequest("This is no HTTP/1.1 request that can be read: call with http:// and an HTTP client"))

    def _refuse(self, error: ServeError) -> None:
        """Close, with an answer unless an earlier request still waits for its own: that would be taken for it."""
        if self.transport.is_closing():
            return
        if self.is_owing:
            self.transport.close()
            return
        body = orjson.dumps(error.body())
        headers = b"content-type: application/json\r\n"
        write_answer(self.transport, error.status, headers, body, content_length=len(body), keep_alive=False)
