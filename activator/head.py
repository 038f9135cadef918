"""What the activator reads of a request's headers, and the headers of its answers. No body is looked at here."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from activator.calls import Call, Reply
from serve.core.clock import NS_PER_MS, NS_PER_S
from serve.core.errors import BadRequest, ServeError, Unsupported
from serve.core.frames import NO_JSON_LENGTH, Codec, Content
from serve.core.ids import RequestId

_OIP_BINARY = int(Content.OIP_BINARY)
_OIP, _OIP_RAW = int(Codec.OIP), int(Codec.OIP_RAW)
"""Plain integers: an enum's attribute costs more than all else that is done with it here."""
_NANO = 1_000_000_000
_CONTENT_TYPES = {
    int(Content.JSON): b"application/json",
    int(Content.OIP_BINARY): b"application/octet-stream",
}
_SAFE_ID = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:/+=@-")
_HEX = frozenset(b"0123456789abcdef")


class Head:
    """The headers that matter. Raises BadRequest or Unsupported for those that cannot be obeyed."""

    __slots__ = (
        "client_id",
        "content_length",
        "is_compressed",
        "is_special",
        "json_length",
        "trace_id",
        "traceparent",
        "wait_s",
    )

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.content_length: int | None = None
        self.json_length: int | None = None
        self.is_compressed = False
        self.is_special = False
        """More than reading its body is asked for."""
        self.wait_s: float | None = None
        self.traceparent = b""
        self.trace_id = ""
        self.client_id = ""
        for name, value in headers:
            if name in _HEADERS:
                _HEADERS[name](self, value)

    def describe(self, call: Call) -> None:
        """Write on a call whose body is there what its head says of it. Raise BadRequest where the two do not fit."""
        call.codec, call.json_length = self.codec(len(call.body))
        call.client_id = self.client_id
        call.trace_id = self.trace_id

    def codec(self, body_bytes: int) -> tuple[int, int]:
        """Return codec and length of the JSON part of a body of `body_bytes`. Raise BadRequest where it is longer."""
        json_length = self.json_length
        if json_length is None:
            return _OIP, NO_JSON_LENGTH
        if json_length == 0:
            return _OIP_RAW, NO_JSON_LENGTH
        if json_length > body_bytes:
            raise BadRequest(
                f"inference header size should be in range (0, {body_bytes}): Inference-Header-Content-Length says "
                f"{json_length}, the body has {body_bytes} bytes"
            )
        return _OIP, json_length

    def wait_until_ns(self, received_ns: int, deadline_ns: int) -> int:
        """Return until when the request may wait for a replica: `Prefer: wait=N` bounds it further."""
        if self.wait_s is None:
            return deadline_ns
        return min(deadline_ns, received_ns + int(self.wait_s * NS_PER_S))


def _content_length(head: Head, value: bytes) -> None:
    head.content_length = int(value)  # the HTTP parser let only digits through


def _json_length(head: Head, value: bytes) -> None:
    if not value.isdigit() or len(value) > 10 or int(value) > 0x7FFF_FFFF:
        raise BadRequest(
            "inference header size should be in range (0, content length): Inference-Header-Content-Length is "
            f"'{value[:40].decode('latin-1')}', which is no byte count"
        )
    head.json_length = int(value)


def _prefer(head: Head, value: bytes) -> None:
    for preference in value.split(b","):
        key, _, given = preference.strip().partition(b"=")
        if key.strip().lower() == b"wait":
            try:
                wait_s = float(given)
            except ValueError:
                continue  # RFC 7240: a preference that is not understood is ignored
            if 0 <= wait_s < 1e6:
                head.wait_s = wait_s


def _expect(head: Head, _value: bytes) -> None:
    head.is_special = True


def _content_encoding(head: Head, value: bytes) -> None:
    coding = value.strip().lower()
    if coding in {b"", b"identity"}:
        return
    if coding not in {b"gzip", b"x-gzip", b"deflate"} or head.is_compressed:
        raise Unsupported("Unsupported compression type: send Content-Encoding gzip or deflate, or none")
    head.is_compressed = head.is_special = True


def _traceparent(head: Head, value: bytes) -> None:
    parts = value.split(b"-")
    if len(parts) >= 4 and len(parts[1]) == 32 and len(parts[2]) == 16 and _HEX.issuperset(parts[1] + parts[2]):
        head.traceparent = value
        head.trace_id = parts[1].decode()


def _client_id(head: Head, value: bytes) -> None:
    if 0 < len(value) <= 128 and _SAFE_ID.issuperset(value):
        head.client_id = value.decode()


_HEADERS: dict[bytes, Callable[[Head, bytes], None]] = {
    b"content-length": _content_length,
    b"inference-header-content-length": _json_length,
    b"expect": _expect,
    b"prefer": _prefer,
    b"content-encoding": _content_encoding,
    b"traceparent": _traceparent,
    b"x-request-id": _client_id,
}


def answer_headers(head: Head, call: Call, reply: Reply) -> bytes:
    """Return the header lines of an answer."""
    lines = (
        b"content-type: %b\r\nx-serve-request-id: %b\r\nx-serve-revision: %d\r\nx-serve-replica: %b\r\n"
        b"x-serve-cold-start: %d\r\nx-serve-cost: %b\r\nserver-timing: %b\r\n"
        % (
            _CONTENT_TYPES.get(reply.head.content, b"application/octet-stream"),
            call.request_id.encode(),
            call.key.number,
            reply.replica.encode(),
            call.is_cold,
            format_cost(reply.cost_nano, reply.currency),
            _server_timing(call, reply),
        )
    )
    if reply.head.content == _OIP_BINARY:
        lines += b"inference-header-content-length: %d\r\n" % reply.head.json_length
    if head.traceparent:
        lines += b"traceparent: %b\r\n" % child_traceparent(head.traceparent)
    return lines


def error_headers(error: ServeError, request_id: RequestId) -> bytes:
    """Return the header lines of a refusal."""
    lines = [b"content-type: application/json", b"x-serve-request-id: " + request_id.encode()]
    lines += (f"{name}: {value}".encode("latin-1", "replace") for name, value in error.headers().items())
    return b"\r\n".join(lines) + b"\r\n"


def _server_timing(call: Call, reply: Reply) -> bytes:
    if call.phases:
        return b", ".join([b"%b;dur=%.3f" % (name.encode(), ns / NS_PER_MS) for name, ns in call.phases.items()])
    queue_ms = (call.dispatched_ns - call.received_ns) / NS_PER_MS
    return b"queue;dur=%.3f, infer;dur=%.3f" % (queue_ms, reply.usage.infer_ns / NS_PER_MS)


def child_traceparent(traceparent: bytes) -> bytes:
    """Return a traceparent of the same trace with a span id of our own (W3C Trace Context)."""
    version, trace_id, _, flags = traceparent.split(b"-")[:4]
    return b"-".join((version, trace_id, secrets.token_hex(8).encode(), flags))


def format_cost(cost_nano: int, currency: str) -> bytes:
    """Return a cost for the `x-serve-cost` header: currency units with nine decimals."""
    whole, nano = divmod(cost_nano, _NANO)
    return b"%d.%09d %b" % (whole, nano, currency.encode("ascii", "replace"))
