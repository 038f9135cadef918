"""Targets: bodies of inference requests, as the replica decodes them, and the way back."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from runtime.decode import InferRequest
from runtime.encode import error_body
from runtime.tensors import DATATYPES, Array, RequestRejected, join, to_binary
from serve.core.frames import NO_JSON_LENGTH, Codec
from tests.fuzz.target import Target
from tests.runtime.echo import EchoModel, read_answer

SENTENCE_CHARS = 2000
"""A refusal is a sentence, not the request once more."""
HEAD = struct.Struct("<BBh")
"""Before each body: which of MODELS, which codec, length of the JSON (-1: all of it)."""

MODELS = (
    *(EchoModel((name, [-1, 2])) for name in DATATYPES),
    EchoModel(("FP32", []), batchable=False),
    EchoModel(("FP32", [-1, -1, -1, -1]), ("BYTES", [-1]), optional=["in_1"]),
    EchoModel(("INT64", [2, 0, 3]), batchable=False),
    EchoModel(("BYTES", [1]), batchable=False),
    EchoModel(("FP64", [4, -1]), batchable=False),
)
_NAMES = [*DATATYPES, "scalar", "cube", "empty", "text", "raw"]


def tensors(data: bytes) -> None:
    """A request is refused with a 4xx and a sentence, or its tensors are those that were sent, in every form."""
    if len(data) < HEAD.size:
        return
    number, codec, json_length = HEAD.unpack_from(data)
    model = MODELS[number % len(MODELS)]
    try:
        request = model.decoder.decode(codec % 4, json_length, memoryview(data)[HEAD.size :])
    except RequestRejected as rejected:
        check_refusal(rejected)
        return
    arrays = arrays_of(model, request)
    message, binary = binary_form(model, arrays)
    check_same(arrays, arrays_of(model, model.decode(message, binary)))
    if not all(DATATYPES[model.loaded.inputs[place].datatype].code for place in arrays):
        return
    try:
        text = json_form(model, arrays)
    except UnicodeDecodeError:  # BYTES that are no text
        return
    check_same(arrays, arrays_of(model, model.decode(text)))
    answered(model, request)


def arrays_of(model: EchoModel, request: InferRequest) -> dict[int, Array]:
    """Return the arrays that the engine would see, by place of the input."""
    places = [int(name[3:]) for name in request.layout.names]
    arrays = {}
    for place, shape, part in zip(places, request.layout.shapes, request.parts, strict=True):
        datatype = DATATYPES[model.loaded.inputs[place].datatype]
        arrays[place] = array = join(datatype, [part], shape)
        assert (array.shape, array.dtype) == (shape, datatype.dtype)
    assert request.layout.weight >= 1
    return arrays


def answered(model: EchoModel, request: InferRequest) -> None:
    """Answer the request, and twice in one batch: each answer is a body a client can read."""
    members = [request, request] if request.layout.signature is not None and request.layout.rows else [request]
    for body in model.encoder.encode([request], results(model, [request])):
        alone = body
        if isinstance(body, RequestRejected):
            check_refusal(body)
            return
        read_answer(body)
    assert model.encoder.encode(members, results(model, members)) == [alone] * len(members)


def results(model: EchoModel, members: list[InferRequest]) -> dict[str, Array]:
    found = {}
    layout = members[0].layout
    for place, name in enumerate(layout.names):
        number = int(name[3:])
        shape = layout.shapes[place]
        if len(members) > 1:
            shape = (layout.rows * len(members), *shape[1:])
        datatype = DATATYPES[model.loaded.inputs[number].datatype]
        found[f"out_{number}"] = join(datatype, [member.parts[place] for member in members], shape)
    for spec in model.loaded.outputs:  # of inputs that were left out
        found.setdefault(spec.name, np.zeros((0,), np.float32))
    return found


def check_refusal(rejected: RequestRejected) -> None:
    assert 400 <= rejected.status < 500 or rejected.status == 501, rejected
    assert 0 < len(str(rejected)) < SENTENCE_CHARS, len(str(rejected))
    body = json.loads(error_body(rejected, "w-1")[3])
    assert set(body) == {"error", "code", "request_id"}


def check_same(one: dict[int, Array], other: dict[int, Array]) -> None:
    assert list(one) == list(other)
    for place, array in one.items():
        assert array.shape == other[place].shape
        assert np.array_equal(array, other[place], equal_nan=array.dtype.kind == "f")


def heads(model: EchoModel, arrays: dict[int, Array]) -> Iterator[tuple[dict[str, Any], Array]]:
    for place, array in arrays.items():
        spec = model.loaded.inputs[place]
        yield {"name": spec.name, "datatype": spec.datatype, "shape": list(array.shape)}, array


def binary_form(model: EchoModel, arrays: dict[int, Array]) -> tuple[dict[str, Any], bytes]:
    inputs, raws = [], []
    for head, array in heads(model, arrays):
        raw = bytes(to_binary(array))
        inputs.append(head | {"parameters": {"binary_data_size": len(raw)}})
        raws.append(raw)
    return {"inputs": inputs, "parameters": {"binary_data_output": True}}, b"".join(raws)


def json_form(model: EchoModel, arrays: dict[int, Array]) -> dict[str, Any]:
    """Return the request with JSON data, nested where that says what the shape says. Raise UnicodeDecodeError."""
    inputs = []
    for head, array in heads(model, arrays):
        values: Any = [item.decode() for item in array.flat] if array.dtype == object else array.ravel().tolist()
        inputs.append(head | {"data": values})
    return {"inputs": inputs}


def seed(kind: str, message: Any, binary: bytes | None = None, codec: int = Codec.OIP) -> bytes:
    text = message if isinstance(message, bytes) else json.dumps(message, separators=(",", ":")).encode()
    json_length = NO_JSON_LENGTH if binary is None else len(text)
    return HEAD.pack(_NAMES.index(kind), codec, json_length) + text + (binary or b"")


def one(datatype: str, shape: list[int], data: Any = None, **more: Any) -> dict[str, Any]:
    tensor = {"name": "in_0", "datatype": datatype, "shape": shape}
    return {"inputs": [tensor | ({} if data is None else {"data": data}) | more]}


def _seeds() -> Iterator[bytes]:
    yield seed("FP32", one("FP32", [1, 2], [0.5, -1]))
    yield seed("FP32", one("FP32", [2, 2], [[0.5, -1], [2, 3]]) | {"id": "mine"})
    yield seed("INT64", one("INT64", [1, 2], [-9223372036854775808, 9223372036854775807]))
    yield seed("UINT8", one("UINT8", [1, 2], [0, 255]))
    yield seed("BOOL", one("BOOL", [1, 2], [True, False]))
    yield seed("BYTES", one("BYTES", [1, 2], ["a", "é"]))
    yield seed("BYTES", one("BYTES", [1, 2], parameters={"binary_data_size": 9}), b"\x01\0\0\0a\0\0\0\0")
    yield seed("BOOL", one("BOOL", [1, 2], parameters={"binary_data_size": 2}), b"\x01\x00")
    output = {"outputs": [{"name": "out_0", "parameters": {"binary_data": True}}]}
    yield seed("FP16", one("FP16", [1, 2], parameters={"binary_data_size": 4}) | output, b"\0\x3c\0\x7c")
    yield seed("FP32", one("FP32", [1, 2], parameters={"binary_data_size": 8}), b"\0\0\xc0\x7f\0\0\x80\x3f")
    yield seed("FP32", b'{"inputs":[{"name":"in_0","datatype":"FP32","shape":[1,2],"data":[NaN,-Infinity]}]}')
    yield seed("scalar", one("FP32", [], 7))
    yield seed("empty", one("INT64", [2, 0, 3], []))
    cube = one("FP32", [1, 2, 1, 2], [[[[1, 2]], [[3, 4]]]])
    cube["inputs"].append({"name": "in_1", "datatype": "BYTES", "shape": [1], "data": ["x"]})
    yield seed("cube", cube)
    yield seed("raw", bytes(64), codec=Codec.OIP_RAW)
    yield seed("text", b"some text", codec=Codec.OIP_RAW)


TARGETS = (
    Target(
        "tensors",
        tensors,
        tuple(_seeds()),
        ("runtime",),
        (
            *(
                b'"inputs"',
                b'"outputs"',
                b'"parameters"',
                b'"binary_data_size"',
                b'"binary_data"',
                b'"shape"',
                b'"data"',
            ),
            *(b'"binary_data_output"', b'"id"', b'"shared_memory_region"', b'"datatype"', b'"in_0"', b'"out_0"'),
            *(b"NaN", b"-Infinity", b"1e999", b"1e308", b"-0.0", b"1.0", b"true", b"null", b"9223372036854775808"),
            *(
                b"2147483647",
                b"2147483648",
                b"1000000000000000000",
                b"-1",
                b"\\ud800",
                b"\\u0000",
                b"[" * 64,
                b"]" * 64,
            ),
        ),
    ),
)
