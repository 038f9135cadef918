"""The data plane of a real platform over raw sockets: odd methods, paths, headers and bodies at a live model."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.e2e.platforms import DIGITS, RunningPlatform

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]
THREE = (DIGITS / "three.json").read_bytes()

METHODS = st.sampled_from(["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "get", "X"])
NAMES = st.sampled_from(
    [
        "digits",
        "nobody",
        "",
        "..",
        "%2e%2e",
        "%00",
        "%ff",
        "digits%2Finfer",
        "é".encode().decode("latin-1"),
        "x" * 300,
        "a b",
    ]
)
TAILS = st.sampled_from(
    [
        "",
        "/",
        "/infer",
        "/ready",
        "/infer/",
        "/versions/1/infer",
        "/versions/0/infer",
        "/versions/x",
        "/versions/99999999999",
        "/versions/-1/infer",
        "/versions/²/infer".encode().decode("latin-1"),
        "/infer?x=y",
        "/generate",
        "/infer#x",
        "/../infer",
    ]
)
PATHS = st.one_of(
    st.builds("/v2/models/{}{}".format, NAMES, TAILS),
    *[st.just("/v2/models/digits/infer")] * 3,
    st.sampled_from(
        ["/v2", "/v2/", "/", "//", "/v2/health/ready", "/v2/models", "*", "/metrics", "/api", "http://x/v2", "v2"]
    ),
)
HEADERS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(
                [
                    *(
                        "inference-header-content-length",
                        "prefer",
                        "content-encoding",
                        "expect",
                        "traceparent",
                        "x-request-id",
                    ),
                    *(
                        "transfer-encoding",
                        "content-type",
                        "connection",
                        "host",
                        "upgrade",
                        "te",
                        "accept-encoding",
                        "range",
                    ),
                ]
            ),
            st.sampled_from(
                [
                    *(
                        "0",
                        "-1",
                        "5",
                        "288",
                        "99999999999",
                        "x",
                        "",
                        "1e5",
                        "\xff",
                        "gzip",
                        "identity",
                        "chunked",
                        "wait=0",
                    ),
                    *(
                        "wait=nan",
                        "wait=-1",
                        "wait=1e400",
                        "100-continue",
                        "close",
                        "keep-alive",
                        "websocket",
                        "bytes=0-1",
                    ),
                    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                ]
            ),
        ),
        st.tuples(
            st.text("abc-_\x7f() ", min_size=1, max_size=8), st.text(st.characters(max_codepoint=255), max_size=20)
        ),
    ),
    max_size=2,
)
BODIES = st.one_of(
    st.just(THREE),
    st.binary(max_size=60),
    st.builds(
        lambda at, cut, put: THREE[:at] + put + THREE[at + cut :],
        st.integers(0, 200),
        st.integers(0, 9),
        st.binary(max_size=9),
    ),
    st.sampled_from(
        [b"", b"{}", b"[" * 5000, b'{"inputs":[{"name":%b}]}' % (b"[" * 900 + b"]" * 900), b'{"inputs":[]}' * 2]
    ),
)


@settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(st.just("POST"), METHODS),
    PATHS,
    st.one_of(st.just([]), HEADERS),
    BODIES,
    st.sampled_from([0, 0, 0, 0, 1, -1]),
)
def test_no_request_is_too_odd_for_an_answer(
    platform: RunningPlatform, method: str, path: str, headers: list[tuple[str, str]], body: bytes, lie: int
) -> None:
    """A request is answered as the protocol has it, or refused. Without an answer stays only one that has no end."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "host: localhost"]
    is_whole = lie <= 0 and not any(name.strip() in OPEN_ENDED for name, _ in headers)
    if is_whole or lie:
        lines.append(f"content-length: {max(0, len(body) + lie)}")
    answer = asked(
        platform, "\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1") + body, ends=not is_whole
    )
    if answer is None:
        assert not is_whole
        return
    status, sent, text = answer
    assert status < 500 or status in (501, 503), (status, text)
    assert b"Traceback" not in text
    if status >= 400 and method != "HEAD":
        refusal = json.loads(text)
        assert set(refusal) >= {"error", "code", "request_id"}, refusal
        assert refusal["request_id"] == sent["x-serve-request-id"]


OPEN_ENDED = frozenset({"transfer-encoding", "upgrade", "expect"})


def asked(platform: RunningPlatform, data: bytes, *, ends: bool) -> tuple[int, dict[str, str], bytes] | None:
    """Return status, headers and body of the first answer; None where the connection was closed without one."""
    parts = urlsplit(platform.info.url)
    with socket.create_connection((parts.hostname, parts.port), 20) as connection, suppress(ConnectionError):
        connection.sendall(data)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        with suppress(ConnectionResetError):
            while part := connection.recv(1 << 16):
                received += part
        head, _, body = received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        if first:
            return (
                int(first.split()[1]),
                {k.lower(): v.strip() for k, _, v in (ln.partition(":") for ln in lines)},
                body,
            )
    return None


def test_after_all_that_the_same_replica_answers(platform: RunningPlatform) -> None:
    (pid,) = platform.pids("digits") or [0]
    assert platform.infer("digits", THREE).status_code == 200
    assert pid in (0, *platform.pids("digits"))
    assert "Traceback" not in platform.log()
