"""Targets: what people write: `serve.yaml`, flags, samples, names; and what the command finds on its disk."""

from __future__ import annotations

import atexit
import json
import math
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

from serve.cli.failure import CommandError
from serve.cli.options import duration_s
from serve.cli.specfile import check, choose_name, merge, pair, read_document, read_request
from serve.control.sample import given
from serve.control.wire import parse
from serve.core.errors import BadRequest, InvalidSpec, SampleFailed
from serve.core.home import Home
from serve.core.ids import check_name
from serve.core.spec import DeploymentSpec
from tests.fuzz.target import Target

_FOLDER = Path(mkdtemp(prefix="servezero-fuzz-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)


def check_sentence(error: object, most_chars: int = 100_000) -> None:
    text = str(error)
    assert text
    assert len(text) <= most_chars, len(text)
    assert "\n" not in text, text
    assert "Traceback" not in text


def serve_yaml(data: bytes) -> None:
    """A file with settings means a spec that comes back from JSON as it went, or is refused with a sentence."""
    path = _FOLDER / "serve.yaml"
    path.write_bytes(data)
    try:
        document = read_document(str(path))
        spec = merge(document, {"min": None}, [], [])
        model = document.get("model")
        spec["name"] = choose_name(spec, model if isinstance(model, str) else "model.onnx")
        check(spec)
    except CommandError as error:
        check_sentence(error)
        return
    check_spec(DeploymentSpec.model_validate(spec))


def check_spec(spec: DeploymentSpec) -> None:
    assert DeploymentSpec.model_validate_json(spec.model_dump_json()) == spec
    for value in spec.model_dump().values():
        assert not isinstance(value, float) or math.isfinite(value)
    assert check_name(spec.name) == spec.name


def spec_json(data: bytes) -> None:
    """Settings as JSON: as above; whatever is wrong is one sentence that can be sent."""
    try:
        check_spec(parse(DeploymentSpec, data))
    except InvalidSpec as error:
        check_sentence(error, 4000)
        json.dumps(error.body()).encode()
    except BadRequest as error:
        check_sentence(error, 400)


def flags(data: bytes) -> None:
    """Pairs, durations, names and URLs of a command line."""
    text = data.decode("utf-8", "surrogateescape")
    for read in (
        lambda: pair(text, "--label"),
        lambda: choose_name({}, text),
        lambda: choose_name({"name": text}, "model.onnx"),
        lambda: merge({}, {}, [text], [text]),
    ):
        with suppress(CommandError):
            read()
    with suppress(CommandError):
        assert 0 <= duration_s(text, "--wait") < math.inf


def sample(data: bytes) -> None:
    """A request in a file is passed on as it is meant, or refused with a sentence."""
    path = _FOLDER / "sample.json"
    path.write_bytes(data)
    try:
        request = json.loads(read_request(str(path), "--sample"))
    except CommandError as error:
        check_sentence(error)
        return
    try:
        body = given(request)
    except SampleFailed:
        return
    assert repr(json.loads(body.data)) == repr(request)


def platform_json(data: bytes) -> None:
    """The file that says where the platform runs is read whole, or counts as absent."""
    home = Home(_FOLDER)
    home.info_file.write_bytes(data)
    info = home.read_info()
    if info is not None:
        assert isinstance(info.pid, int)
        assert info.pid > 0
        assert all(isinstance(text, str) for text in (info.url, info.admin_url, info.version))
    home.token_file.write_bytes(data)
    token = home.token()
    assert token is None or token.isascii()


_YAML = b"""model: model.onnx
name: digits
idle: 30s
queue_bytes: 256MiB
max: 4
labels: {team: vision, cost-centre: "42"}
engine: onnx
engine_settings: {}
"""
_BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%b]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(8)
)
_SPEC = {"name": "digits", "idle": "30s", "queue_bytes": "1MiB", "labels": {"team": "x"}, "target": 0.5}
_SAMPLE = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 18446744073709551616]}]}
_VALUES = (
    *(b"1e999", b"-1", b"NaN", b"Infinity", b"1" * 400, b"null", b"true", b'"1e400s"', b'"-5m"', b'"99999999999d"'),
    *(b'"\\ud800"', b'"a\\u0000b"', b"[[[[[[[[", b'{"a":{"a":{"a":', b'"9999999999999EiB"', b'"../x"', b'"\xc5\x81"'),
)

TARGETS = (
    Target(
        "serve_yaml",
        serve_yaml,
        (_YAML, b"model: https://example.org/m.onnx\nidle: 1h30m\n", b"name: &n digits\nlabels: {a: *n}\n", _BOMB),
        ("serve.cli.specfile", "serve.core"),
        (
            *(b"&a ", b"*a", b"<<: ", b"? ", b"!!python/name:x", b"!!binary ", b"!!timestamp ", b"!!int ", b"!!float "),
            *(b".inf", b".nan", b"2026-13-45", b"0o9", b"1_0", b"--- ", b"...", b"%YAML 9.9\n", b"[" * 80, b"\x00"),
            *(b"engine_settings: ", b"labels: ", b"model: ~nobody-here/m.onnx\n", b"idle: ", b"1" * 5000),
        ),
    ),
    Target(
        "spec_json",
        spec_json,
        (json.dumps(_SPEC).encode(), b'{"name":"x","engine_settings":{"a":[1,{"b":null}]},"min":1,"max":2}'),
        ("serve.core",),
        _VALUES,
    ),
    Target(
        "flags",
        flags,
        (b"team=vision", b"threads=4", b"1h30m", b"digits/model.onnx", b"https://example.org/a%20b.onnx?x#y", b"a=[1]"),
        ("serve.cli.specfile", "serve.core.ids", "pytimeparse2"),
        (b"1e999", b"inf", b"nan", b"9" * 400, b"=", b"[" * 3000, b"../", b"//", b"\xff", b"d", b"w", b"mo", b"-"),
    ),
    Target(
        "sample",
        sample,
        (json.dumps(_SAMPLE).encode(), b'{"inputs":[NaN]}'),
        ("serve.cli.specfile", "serve.control.sample"),
        (*_VALUES, b"[" * 500),
    ),
    Target(
        "platform_json",
        platform_json,
        (
            b'{"url":"http://127.0.0.1:8000","admin_url":"http://127.0.0.1:8000","pid":7,"version":"0","started_wall_ns":1}',
        ),
        ("serve.core.home",),
        (*_VALUES, b'"pid":', b'"url":'),
    ),
)
