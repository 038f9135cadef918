"""Reading requests off a connection: what httptools and uvicorn leave open is decided here.

A head has a limit. The wish for another protocol is not granted and costs nothing: clients that speak HTTP/2 where
they can (curl --http2, Java's) send it with every first request. What is no HTTP, or could be read in two ways, is
refused, behind the answers that are still owed.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from activator.answer import write_answer
from activator.head import error_headers
from activator.limits import HEAD_BYTES, HEADERS
from serve.core.errors import BadRequest, ServeError, TooLarge
from serve.core.ids import RequestIds, new_writer_id

log = logging.getLogger(__name__)

_ABOUT_UPGRADE = frozenset({b"upgrade", b"connection", b"http2-settings"})
_CONNECT = b"CONNECT"
_VERSIONS = frozenset({"1.1", "1.0"})
_UNREAD_IDS = RequestIds(new_writer_id())
"""Of requests that nobody could read: their refusals look like all others."""


class RequestReader(HttpToolsProtocol):
    """One client connection, up to the end of a head. `url` and `headers` are those of the head being read."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._is_in_head = False
        self._begun_s = 0.0
        """When the first read ended in the midst of this head; 0 before."""
        self._is_partial = False
        """A request has begun and not all of it is there."""
        self._is_deaf = False
        """What still comes is dropped: the last answer is given, or decided."""
        self._head_bytes = 0
        self._is_progress = False
        """The read that is looked at began or ended a head, or brought a part of a body."""
        self._last_words: ServeError | None = None
        """Said behind the answers that are owed, before the connection is closed."""

    @abstractmethod
    def head_complete(self) -> None:
        """A request's head is there. Called by the parser."""

    @property
    @abstractmethod
    def is_owing(self) -> bool:
        """Whether a request on this connection still waits for its answer."""

    @abstractmethod
    def give_up_body(self, error: ServeError) -> None:
        """The rest of a body will not come, or not be read: answer its request with `error`, and close."""

    @abstractmethod
    def end(self) -> None:
        """Close behind what was written."""

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
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
            self.refuse(TooLarge(f"The request's head has more than {HEAD_BYTES} bytes: send fewer headers"))

    def refuse(self, error: ServeError) -> None:
        """Read no more, and close behind the answers that are owed and this one."""
        if self._is_deaf or self.transport.is_closing():
            return
        if self._is_partial and not self._is_in_head:
            self.give_up_body(error)
            return
        self.say_at_last(error)

    def say_at_last(self, error: ServeError) -> None:
        """Close behind the answers that are owed and this one."""
        self._is_deaf = True
        self._last_words = error
        if self.is_owing:
            self.flow.pause_reading()
        else:
            self._say_last_words(error)

    # Parser callbacks

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self._is_in_head = self._is_progress = self._is_partial = True
        self._begun_s = 0.0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:  # what follows a chunked body is nobody's business
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._is_progress = True
        if len(self.headers) > HEADERS:
            raise TooLarge(f"The request has more than {HEADERS} headers: send fewer")
        if not self.parser.should_upgrade():
            self.head_complete()
        self._is_in_head = False

    # Within

    def check_head(self) -> None:
        """Raise BadRequest for what the parser lets through and others may read otherwise. Not for the hot path."""
        version = self.parser.get_http_version()
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if version not in _VERSIONS or (codings and (version == "1.0" or codings[0].strip().lower() != b"chunked")):
            raise _no_request()
        if sum(name == b"host" for name, _ in self.headers) > 1:
            raise _no_request()
        if httptools.parse_url(self.url).path is None:
            raise _no_request()  # uvicorn relies on one

    def _say_last_words(self, error: ServeError) -> None:
        request_id = _UNREAD_IDS.next()
        body, lines = orjson.dumps(error.body(request_id)), error_headers(error, request_id)
        write_answer(self.transport, error.status, lines, body, content_length=len(body), keep_alive=False)
        self.end()

    def _read_without_upgrade(self, data: bytes, upgrade: httptools.HttpParserUpgrade) -> None:
        """Read the request again without its wish: the parser takes what follows the head for the other protocol."""
        rest = memoryview(data)
        wish: httptools.HttpParserUpgrade | None = upgrade
        while wish is not None:
            method = self.parser.get_method()
            if method == _CONNECT:
                self.refuse(_no_request())
                return
            rest = rest[wish.args[0] :]
            wish = None
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            try:
                self.parser.feed_data(self._head_without_upgrade(method))
                self.parser.feed_data(rest)
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
        if isinstance(cause, ServeError):
            self.refuse(cause)
        elif cause is None or isinstance(cause, httptools.HttpParserError | httptools.HttpParserUpgrade | UnicodeError):
            self.refuse(_no_request())
        else:
            log.error("request failed inside the activator", exc_info=cause)
            self.refuse(ServeError("Internal error: see the platform's log"))


def _no_request() -> BadRequest:
    return BadRequest("This is no HTTP/1.1 request that can be read: call with http:// and an HTTP client")
