"""Targets: what comes in over HTTP: headers and paths of the data plane, bodies of the control API, manifests."""

from __future__ import annotations

import json
import posixpath
from contextlib import suppress
from typing import cast

import orjson

from activator.head import Head, child_traceparent, error_headers
from activator.oip import ModelDirectory, describe, parse_path
from cache.manifest import Manifest
from serve.control.guard import error_response
from serve.control.sample import given
from serve.control.wire import DeployBody, RollbackBody, parse
from serve.core.errors import ServeError
from serve.core.events import TensorSpec
from serve.core.ids import RequestId, RevisionKey
from serve.core.revision import Revision, Route, Signature, State
from serve.core.spec import DeploymentSpec
from tests.fuzz.settings import check_spec
from tests.fuzz.target import Target

SENTENCE_BYTES = 8192


def check_refusal(error: ServeError) -> None:
    """Hold it to what every refusal is: not our fault, a code, a sentence that can be sent."""
    assert 400 <= error.status < 500 or error.status in (501, 503), repr(error)
    body = orjson.loads(error_response(error, "w-1").body)
    assert set(body) >= {"error", "code", "request_id"}
    assert len(orjson.dumps(body)) < SENTENCE_BYTES
    assert error_headers(error, RequestId("w-1")).count(b"\r\n") == 2 + len(error.headers())


def heads(data: bytes) -> None:
    """Lines `name: value`, as the HTTP parser gives them: values without line breaks, lengths of digits."""
    headers = []
    for line in data.split(b"\n"):
        name, _, value = line.lower().partition(b": ")
        if name == b"content-length":
            value = bytes(byte for byte in value if 48 <= byte <= 57)[:19] or b"0"
        headers.append((name, value.replace(b"\r", b"").replace(b"\x00", b"")))
    try:
        head = Head(headers)
        codec, json_length = head.codec(len(data))
    except ServeError as error:
        check_refusal(error)
        return
    assert codec in (1, 2)
    assert -1 <= json_length <= len(data)
    assert 0 <= head.wait_until_ns(5, 10**18) <= 10**18
    assert head.client_id.isascii()
    if head.traceparent:
        assert child_traceparent(head.traceparent).count(b"-") == 3


class _Directory:
    def __init__(self) -> None:
        spec = TensorSpec("x", "FP32", (-1, 4))
        self.routes = {}
        for name, state in (("digits", State.READY), ("new", State.PUBLISHING)):
            revision = Revision(
                *(RevisionKey(name, 3), DeploymentSpec(name=name), "0" * 64, "/m", "model.onnx", 1, 0),
                Signature("onnxruntime_onnx", (spec,), (spec,), True),
            )
            known = {3: revision} if state is State.READY else {}
            self.routes[name] = Route(name, state, ((3, 1),) if known else (), known)
        self.is_draining = False

    def state_of(self, route: Route, _revision: Revision | None) -> State:
        return route.state


def paths(data: bytes) -> None:
    """Method and path, apart by a space. Whatever they are: an answer that can be sent, or a refusal."""
    method, _, path = data.decode("latin-1").partition(" ")
    target = parse_path(path)
    assert target is None or target.operation in ("", "ready", "infer")
    try:
        status, body = describe(cast("ModelDirectory", _Directory()), method, path)
    except ServeError as error:
        check_refusal(error)
        return
    assert status in (200, 503)
    orjson.dumps(body)


def deploy_body(data: bytes) -> None:
    """A deploy call is understood, down to safe paths and a sample that can be sent on, or refused."""
    try:
        body = parse(DeployBody, data)
        check_spec(body.spec)
        found = body.model.manifest()
        if found is not None:
            check_manifest(found)
        if body.sample is not None:
            json.loads(given(body.sample).data)
    except ServeError as error:
        check_refusal(error)
    with suppress(ServeError):
        rollback = parse(RollbackBody, data)
        assert rollback.revision is None or rollback.revision >= 1


def manifest(data: bytes) -> None:
    """No file of a model lies outside its folder, and the same files have the same digest."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    try:
        check_manifest(Manifest.from_json(document))
    except ServeError as error:
        check_refusal(error)


def check_manifest(found: Manifest) -> None:
    for file in found.files:
        whole = posixpath.normpath(posixpath.join("/models/m", file.path))
        assert whole == "/models/m/" + file.path, file.path
        assert "\x00" not in whole
        assert all(len(part.encode()) <= 255 for part in file.path.split("/"))
    again = Manifest.from_json({"files": found.to_json()["files"][::-1]})
    assert again.digest == found.digest
    assert again.size_bytes >= 0


_FILE = {"path": "model.onnx", "size": 3, "sha256": "ab" * 32}
_BODY = {"spec": {"name": "digits"}, "model": {"file": "model.onnx", "files": [_FILE]}, "sample": {"inputs": []}}
_URL_BODY = {"spec": {"name": "digits", "idle": "5m"}, "model": {"url": "https://example.org/m.onnx"}}
_HEADERS = (
    b"host: x\ncontent-length: 12\ninference-header-content-length: 5\nprefer: wait=5, respond-async\n"
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\nx-request-id: mine\nexpect: 100-continue",
    b"content-encoding: gzip",
    b"inference-header-content-length: 0",
)
_VALUES = (
    *(b"null", b"-1", b"1e999", b"NaN", b"1" * 400, b'"\\ud800"', b'"a\\u0000"', b'"../x"', b'"/etc/x"', b'"a/./b"'),
    *(b'"e\xcc\x81"', b'"\xc3\xa9"', b'"a//b"', b'"' + b"x" * 300 + b'"', b'"a\\\\b"', b"[" * 200, b'{"a":' * 200),
    *(b'"file:///etc/passwd"', b'"http://[::1"', b'"ftp://x"', b"true", b'"path":', b'"size":', b'"url":', b'"model":'),
)

TARGETS = (
    Target(
        "heads",
        heads,
        _HEADERS,
        ("activator",),
        (b"content-length: ", b"prefer: ", b"wait=", b"nan", b"inf", b"1e5", b"-1", b"\xff", b"9999999999", b"; "),
    ),
    Target(
        "paths",
        paths,
        (
            *(b"GET /v2", b"GET /v2/health/ready", b"GET /v2/models/digits", b"POST /v2/models/digits/infer"),
            *(b"GET /v2/models/digits/versions/3/ready", b"GET /v2/models/new/ready", b"DELETE /v2/models/x"),
        ),
        ("activator",),
        (b"%2F", b"%00", b"%ff", b"/../", b"//", b"versions/", b"99999999999", b"infer", b"\xb2", b"%"),
    ),
    Target(
        "deploy_body",
        deploy_body,
        (json.dumps(_BODY).encode(), json.dumps(_URL_BODY).encode(), b'{"revision": 3}'),
        ("serve.control", "serve.core", "cache.manifest"),
        _VALUES,
    ),
    Target(
        "manifest",
        manifest,
        (json.dumps({"files": [_FILE, _FILE | {"path": "weights/w.bin", "sha256": "cd" * 32}]}).encode(),),
        ("cache.manifest",),
        _VALUES,
    ),
)
