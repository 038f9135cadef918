"""Requests that a live model cannot answer: each is refused with a sentence, and the model serves on."""

from __future__ import annotations

import copy
import gzip
import json
import socket
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.platforms import RunningPlatform
from tests.e2e.raw import exchange, post
from tests.e2e.requests import THREE, binary, labels, pixels

pytestmark = pytest.mark.e2e
INFER = "/v2/models/digits/infer"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def the_same_replica_serves_on(shared: RunningPlatform) -> Iterator[None]:
    before = shared.infer("digits", THREE)
    (pid,) = shared.replicas()
    yield
    after = shared.infer("digits", THREE)
    assert labels(after.json()) == [3]
    assert after.headers["x-serve-replica"] == before.headers["x-serve-replica"]
    assert shared.replicas() == [pid]
    assert "Traceback" not in shared.log()


def refused(answer: Any, status: int, code: str, *words: str) -> None:
    """Hold an answer to the shape of every refusal."""
    body = answer.json() if callable(answer.json) else answer.json
    status_seen = answer.status_code if hasattr(answer, "status_code") else answer.status
    assert (status_seen, body.get("code")) == (status, code), body
    assert set(body) >= {"error", "code", "request_id"}
    assert "Traceback" not in body["error"]
    for word in words:
        assert word in body["error"], body["error"]
    assert answer.headers["x-serve-request-id"] == body["request_id"]


def changed(**changes: Any) -> dict[str, Any]:
    """Return the request for a three with other values in its one input; None takes a key away."""
    request = copy.deepcopy(THREE)
    tensor = request["inputs"][0]
    for key, value in changes.items():
        if value is None:
            del tensor[key]
        else:
            tensor[key] = value
    return request


@pytest.mark.parametrize(
    ("request_body", "word"),
    [
        (changed(name="pixel"), "pixel"),
        (changed(name=None), "pixels"),
        (changed(name=7), "pixels"),
        ({"inputs": []}, "pixels"),
        ({"inputs": THREE["inputs"] + changed(name="extra")["inputs"]}, "extra"),
        ({"inputs": THREE["inputs"] * 2}, "pixels"),
        ({"inputs": "pixels"}, "inputs"),
        ({"inputs": [7]}, "inputs"),
        ({"input": []}, "inputs"),
        (changed(datatype="FP64"), "FP32"),
        (changed(datatype="INT64"), "FP32"),
        (changed(datatype="float"), "float"),
        (changed(datatype=None), "datatype"),
        (changed(shape=[1, 63]), "63"),
        (changed(shape=[2, 64]), "64"),
        (changed(shape=[64]), "shape"),
        (changed(shape=[-1, 64]), "shape"),
        (changed(shape=[1, 64.5]), "shape"),
        (changed(shape=[True, 64]), "shape"),
        (changed(shape=[1 << 62, 64]), "shape"),
        (changed(shape=[0, 64]), "shape"),
        (changed(shape=None), "shape"),
        (changed(shape="1,64"), "shape"),
        (changed(data=[0] * 63), "63"),
        (changed(data=[["0"] * 64]), "pixels"),
        (changed(data=[None] * 64), "pixels"),
        (changed(data=None), "data"),
        (changed(data={}), "data"),
        (THREE | {"outputs": [{"name": "nobody"}]}, "nobody"),
        ([], "object"),
        (7, "object"),
    ],
)
def test_a_tensor_that_the_model_does_not_take_is_400_and_names_what_is_wrong(
    shared: RunningPlatform, request_body: Any, word: str
) -> None:
    refused(shared.infer("digits", request_body), 400, "bad_request", word)


@pytest.mark.parametrize("body", [b"", b"not json", b"{", b'{"inputs": [', b"\xff\xfe", b"null", b"\0" * 100])
def test_a_body_that_is_no_json_object_is_400(shared: RunningPlatform, body: bytes) -> None:
    refused(shared.infer("digits", body), 400, "bad_request")


def test_json_that_is_ten_thousand_levels_deep_is_400(shared: RunningPlatform) -> None:
    for body in (b"[" * 10_000 + b"]" * 10_000, b'{"inputs":' * 10_000 + b"1" + b"}" * 10_000):
        refused(shared.infer("digits", body), 400, "bad_request")
    nested = json.dumps(THREE).replace('"data": ', '"data": ' + "[" * 10_000).encode()
    refused(shared.infer("digits", nested[:-3] + b"]" * 10_000 + b"}]}"), 400, "bad_request")


def test_nan_and_infinity_are_floats_like_any_other(shared: RunningPlatform) -> None:
    for word in ("NaN", "Infinity", "-Infinity"):
        body = json.dumps(changed(data=["@"] + [0] * 63)).replace('"@"', word).encode()
        answer = shared.infer("digits", body)
        assert answer.status_code == 200, answer.text
        assert len(labels(answer.json())) == 1


def test_a_binary_tensor_with_a_wrong_byte_count_or_header_is_400(shared: RunningPlatform) -> None:
    body, headers = binary(THREE)
    length = int(headers["inference_header_content_length"])
    wrong: list[tuple[bytes, str]] = [
        (body[:-1], str(length)),
        (body + b"\0", str(length)),
        (body, str(length - 1)),
        (body, str(length + 1)),
        (body, str(len(body) + 1)),
        (body, "-1"),
        (body, "twelve"),
        (body, "9" * 30),
        (body, "1.5"),
        (b"", str(length)),
    ]
    for content, header in wrong:
        refused(shared.infer("digits", content, inference_header_content_length=header), 400, "bad_request")
    for size in (255, 257, -1, "256", 2**70, True):
        body, headers = binary(THREE, parameters={"binary_data_size": size})
        refused(shared.infer("digits", body, **headers), 400, "bad_request")
    body, headers = binary(THREE, data=[0] * 64)
    refused(shared.infer("digits", body, **headers), 400, "bad_request")


def test_a_bare_tensor_without_json_is_answered_or_refused_by_its_size(shared: RunningPlatform) -> None:
    answer = shared.infer("digits", pixels(THREE), inference_header_content_length="0")
    assert answer.status_code == 200, answer.text
    refused(shared.infer("digits", pixels(THREE)[:-2], inference_header_content_length="0"), 400, "bad_request")


def test_compressed_bodies_are_unpacked_and_what_is_not_what_it_says_is_refused(shared: RunningPlatform) -> None:
    plain = json.dumps(THREE).encode()
    for packed, coding in ((gzip.compress(plain), "gzip"), (zlib.compress(plain), "deflate")):
        answer = shared.infer("digits", packed, content_encoding=coding)
        assert labels(answer.json()) == [3]
    body, headers = binary(THREE)
    assert shared.infer("digits", gzip.compress(body), content_encoding="gzip", **headers).status_code == 200
    refused(shared.infer("digits", plain, content_encoding="gzip"), 400, "bad_request", "Content-Encoding")
    refused(shared.infer("digits", plain, content_encoding="zstd"), 501, "unsupported", "Content-Encoding")


def test_a_body_that_unpacks_to_more_than_the_limit_is_413(shared: RunningPlatform) -> None:
    bomb = gzip.compress(b" " * (100 * MIB), 1)
    assert len(bomb) < MIB
    refused(shared.infer("digits", bomb, content_encoding="gzip"), 413, "too_large", "SERVE_BODY_LIMIT")


def test_a_body_over_the_limit_is_413_announced_or_not(shared: RunningPlatform) -> None:
    announced = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {65 * MIB}\r\n\r\n".encode()
    (answer,) = exchange(shared.info.url, announced + b"[" * 1000)
    refused(answer, 413, "too_large", "SERVE_BODY_LIMIT")

    chunk = f"{MIB:x}\r\n".encode() + b" " * MIB + b"\r\n"
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    (answer,) = exchange(shared.info.url, head + chunk * 66 + b"0\r\n\r\n")
    refused(answer, 413, "too_large", "SERVE_BODY_LIMIT")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/v2/models/nobody/infer", 404, "unknown_model"),
        ("GET", "/v2/models/nobody", 404, "unknown_model"),
        ("GET", "/v2/models/nobody/ready", 404, "unknown_model"),
        ("POST", "/v2/models/digits/versions/99/infer", 404, "unknown_version"),
        ("POST", "/v2/models/digits/versions/one/infer", 404, "unknown_version"),
        ("POST", "/v2/models/digits/versions/-1/infer", 404, "unknown_version"),
        ("GET", "/v2/models/digits/versions/99", 404, "unknown_version"),
        ("GET", "/v2/models/digits/infer", 405, "method_not_allowed"),
        ("PUT", "/v2/models/digits/infer", 405, "method_not_allowed"),
        ("POST", "/v2/models/digits/ready", 405, "method_not_allowed"),
        ("DELETE", "/v2/models/digits", 405, "method_not_allowed"),
        ("POST", "/v2/health/live", 405, "method_not_allowed"),
        ("GET", "/v2/models/digits/infer/more", 404, "not_found"),
        ("POST", "/v2/models//infer", 404, "not_found"),
        ("GET", "/v2/nothing", 404, "not_found"),
    ],
)
def test_what_is_not_there_is_404_or_405(
    shared: RunningPlatform, method: str, path: str, status: int, code: str
) -> None:
    answer = shared.http(method, path, json={})
    refused(answer, status, code)
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize("path", ["/", "/nothing", "/v2x", "/v1/models", "/metricsx", "/%00", "/..%2f..%2fetc/passwd"])
def test_other_paths_are_404_with_a_sentence(shared: RunningPlatform, path: str) -> None:
    answer = shared.http("GET", path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_a_name_that_is_written_otherwise_is_not_the_same_model(shared: RunningPlatform) -> None:
    assert shared.infer("digit%73", THREE).status_code == 200, "the same name, percent-encoded"
    for name in ("DIGITS", "digits%2f", "digits%00", "d" * 5000):
        assert shared.infer(name, THREE).status_code == 404


THREE_BODY = json.dumps(THREE).encode()


def test_http_1_0_and_a_missing_host_are_answered(shared: RunningPlatform) -> None:
    for data in (post(INFER, THREE_BODY, version="1.0", host=None), post(INFER, THREE_BODY, "Connection: close")):
        (answer,) = exchange(shared.info.url, data)
        assert (answer.status, labels(answer.json)) == (200, [3])


def test_pipelined_requests_are_answered_in_order(shared: RunningPlatform) -> None:
    zeros = json.dumps(changed(data=[0] * 64)).encode()
    bodies = [THREE_BODY, b"no json", zeros, THREE_BODY]
    answers = exchange(shared.info.url, b"".join(post(INFER, body) for body in bodies), answers=4)
    assert [answer.status for answer in answers] == [200, 400, 200, 200]
    assert [labels(answers[at].json) for at in (0, 3)] == [[3], [3]]
    ids = [answer.headers["x-serve-request-id"] for answer in answers]
    assert len(set(ids)) == 4


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        post(INFER, THREE_BODY, "Content-Length: 3"),
        post(INFER, THREE_BODY, "X: " + "x" * (2 * MIB)),
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n".encode(),
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n".encode(),
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".encode(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT localhost:22 HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /v2/models/ä HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        b"GET /" + b"a" * (2 * MIB) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=[
        *("nonsense", "no path", "two lengths", "2 MiB header", "negative", "no number", "bad chunk", "TLS"),
        *("asterisk", "connect", "not ASCII", "2 MiB path"),
    ],
)
def test_bytes_that_are_no_call_of_ours_are_refused_or_dropped(shared: RunningPlatform, data: bytes) -> None:
    answers = exchange(shared.info.url, data + b"\r\n\r\n")
    assert [answer.json["code"] for answer in answers] in ([], ["bad_request"], ["too_large"], ["not_found"])


@pytest.mark.parametrize(
    "value", ["wait", "wait=", "wait=x", "wait=-1", "wait=nan", "wait=inf", "wait=1e9", "a, wait=5"]
)
def test_preferences_that_mean_nothing_are_ignored(shared: RunningPlatform, value: str) -> None:
    assert shared.infer("digits", THREE, prefer=value).status_code == 200


def test_a_warm_model_answers_those_who_do_not_want_to_wait(shared: RunningPlatform) -> None:
    assert shared.infer("digits", THREE, prefer="wait=0").status_code == 200


def test_trace_and_request_ids_of_callers_come_back_or_are_ignored(shared: RunningPlatform) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    answer = shared.infer("digits", THREE, traceparent=f"00-{trace}-b7ad6b7169203331-01")
    _, same_trace, span, flags = answer.headers["traceparent"].split("-")
    assert (same_trace, flags) == (trace, "01")
    assert span != "b7ad6b7169203331"
    for broken in ("", "00", "00-x-y-01", "-" * 1000, "00-" + "Z" * 32 + "-" + "0" * 16 + "-01"):
        assert "traceparent" not in shared.infer("digits", THREE, traceparent=broken).headers
    assert shared.infer("digits", THREE, x_request_id="a'\"><script>").status_code == 200


def test_a_client_that_leaves_in_the_middle_of_its_body_harms_nobody(shared: RunningPlatform) -> None:
    parts = urlsplit(shared.info.url)
    for data in (post(INFER, THREE_BODY)[:-50], post(INFER, b" " * MIB)[:-50], post(INFER, THREE_BODY)):
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.sendall(data)


def test_a_head_within_the_limit_is_read_even_in_pieces_behind_a_long_body(shared: RunningPlatform) -> None:
    long = post(INFER, THREE_BODY + b" " * MIB)
    wide = post(INFER, THREE_BODY, "X: " + "x" * 40_000)
    answers = exchange(shared.info.url, long + wide + post(INFER, THREE_BODY), answers=3)
    assert [answer.status for answer in answers] == [200, 200, 200]


def test_an_upgrade_that_is_offered_is_not_taken_and_the_request_answered(shared: RunningPlatform) -> None:
    lines = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    asking = post(INFER, THREE_BODY, *lines)
    answers = exchange(shared.info.url, asking + post(INFER, THREE_BODY) + asking + asking, answers=4)
    assert [(answer.status, labels(answer.json)) for answer in answers] == [(200, [3])] * 4
    long = post(INFER, THREE_BODY + b" " * MIB, *lines)
    assert [answer.status for answer in exchange(shared.info.url, long)] == [200]
