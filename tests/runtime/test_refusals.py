"""Every malformed request gets a sentence that names the input, what was expected and what came."""

# ruff: noqa: E501 (one case a line)

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.tensors import RequestRejected
from serve.core.frames import Codec
from tests.runtime.echo import EchoModel

MODEL = (("FP32", [-1, 2]), ("INT8", [-1]), ("BYTES", [-1]))
GOOD: list[dict[str, Any]] = [
    {"name": "in_0", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]},
    {"name": "in_1", "shape": [1], "datatype": "INT8", "data": [1]},
    {"name": "in_2", "shape": [1], "datatype": "BYTES", "data": ["a"]},
]


def changed(place: int, **values: Any) -> dict[str, Any]:
    """Return a good request with some keys of one input replaced (None: removed)."""
    inputs = [dict(item) for item in GOOD]
    inputs[place] = {key: value for key, value in (inputs[place] | values).items() if value is not None}
    return {"inputs": inputs}


def binary(size: Any, **more: Any) -> dict[str, Any]:
    return changed(0, data=None, parameters={"binary_data_size": size}, **more)


DEEP = b"[" * 1000 + b"]" * 1000
"""Parsed without complaint, though Python cannot write it out again."""

REFUSED: list[tuple[str, Any, bytes | None, str]] = [
    ("no JSON", b"{nope", None, r"failed to parse the request JSON: .*line 1 column 2"),
    ("cut short", b'{"inputs": [', None, r"failed to parse the request JSON"),
    ("not UTF-8", b'{"inputs": "\xff"}', None, r"failed to parse the request JSON: it is not UTF-8: byte 12"),
    ("empty", b"", None, r"failed to parse the request JSON"),
    ("too deep", b"[" * 100_000, None, r"nesting is too deep"),
    ("deep and whole", b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}", None, r"nesting is too deep"),
    ("name of deep arrays", b'{"inputs":[{"name":%b}]}' % DEEP, None, r"unexpected inference input 'an array'"),
    ("datatype of deep arrays", b'{"inputs":[{"name":"in_0","datatype":%b}]}' % DEEP, None, r"got an array"),
    ("dims of deep arrays", b'{"inputs":[{"name":"in_0","datatype":"FP32","shape":%b}]}' % DEEP, None, r"got an array"),
    ("too many dims", changed(0, shape=[1] * 5000), None, r"Expected \[-1, 2\], got 5000 dims"),
    ("an array", b"[]", None, r"must be a JSON object with 'inputs'"),
    ("lone surrogate", b'{"id": "\\ud800"}', None, r"a string holds a lone surrogate"),
    ("number too large", b'{"inputs": [1e999]}', None, r"1e999"),
    ("no inputs", {}, None, r"must have 'inputs'"),
    ("inputs null", {"inputs": None}, None, r"must have 'inputs'"),
    ("inputs an object", {"inputs": {}}, None, r"must have 'inputs', an array"),
    ("input a number", {"inputs": [1]}, None, r"every element of 'inputs' must be an object"),
    ("empty list", {"inputs": []}, None, r"expected 3 inputs but got 0 inputs for model 'echo'.*missing required"),
    ("id a number", {"inputs": GOOD, "id": 7}, None, r"'id' must be a string"),
    ("one missing", {"inputs": GOOD[:2]}, None, r"expected 3 inputs but got 2 inputs .*missing required inputs \['in_2'\]"),
    ("unknown name", changed(0, name="image"), None, r"unexpected inference input 'image' for model 'echo'.*'in_0' \(FP32"),
    ("long name", changed(0, name="x" * 10_000), None, r"unexpected inference input 'x{100}' for"),
    ("no name", changed(0, name=None), None, r"unexpected inference input 'null'"),
    ("name a list", changed(0, name=["in_0"]), None, r"unexpected inference input 'an array'"),
    ("duplicate", {"inputs": [*GOOD, GOOD[1]]}, None, r"input 'in_1' already exists in request"),
    ("other datatype", changed(0, datatype="INT32"), None, r"input 'in_0' data-type is 'INT32', but model 'echo' expects 'FP32'"),
    ("no such datatype", changed(0, datatype="float"), None, r"input 'in_0': 'datatype' must be 'FP32', got 'float'"),
    ("no datatype", changed(0, datatype=None), None, r"input 'in_0': 'datatype' must be 'FP32', got null"),
    ("datatype a list", changed(0, datatype=[1]), None, r"input 'in_0': 'datatype' must be 'FP32', got an array"),
    ("no shape", changed(0, shape=None), None, r"input 'in_0': 'shape' must be an array"),
    ("shape a string", changed(0, shape="12"), None, r"input 'in_0': 'shape' must be an array"),
    ("negative dim", changed(0, shape=[-1, 2]), None, r"input 'in_0': every dim .* from 0 to 2147483647, got -1"),
    ("dim too large", changed(0, shape=[2**31, 2]), None, r"got 2147483648"),
    ("dims overflow", changed(0, shape=[2**31 - 1, 2]), None, r"which is 4294967294 elements, but 'data' has 2"),
    ("dim beyond 64 bits", changed(0, shape=[2**70, 2]), None, r"every dim of 'shape' is a whole number"),
    ("dim a fraction", changed(0, shape=[1.5, 2]), None, r"got 1.5"),
    ("dim a word", changed(0, shape=["1", 2]), None, r"got '1'"),
    ("dim not finite", b'{"inputs":[{"name":"in_0","shape":[NaN,Infinity],"datatype":"FP32","data":[]}]}', None, r"got nan"),
    ("dim true", changed(0, shape=[True, 2]), None, r"got true"),
    ("dim null", changed(0, shape=[None, 2]), None, r"got null"),
    ("dim a list", changed(0, shape=[[1], 2]), None, r"got an array"),
    ("rank", changed(0, shape=[2]), None, r"unexpected shape for input 'in_0' for model 'echo'. Expected \[-1, 2\], got \[2\]"),
    ("fixed dim", changed(0, shape=[1, 3]), None, r"unexpected shape for input 'in_0' .* Expected \[-1, 2\], got \[1, 3\]"),
    ("too few", changed(0, data=[1]), None, r"Shape does not match true shape of 'data' field: input 'in_0' .* 'data' has 1"),
    ("too many", changed(0, data=[1, 2, 3]), None, r"Shape does not match true shape .* 'data' has 3"),
    ("ragged", changed(0, shape=[2, 2], data=[[1, 2], [3]]), None, r"Unable to parse 'data': Shape does not match"),
    ("nested too deep", changed(0, data=[[[1, 2]]]), None, r"Unable to parse 'data'|element 0 is an array"),
    ("half nested", changed(0, shape=[2, 2], data=[[1, 2], 3]), None, r"Unable to parse 'data'"),
    ("no data", changed(0, data=None), None, r"input 'in_0' has no 'data' and no parameter 'binary_data_size'"),
    ("data null", b'{"inputs":[{"name":"in_0","shape":[1,2],"datatype":"FP32","data":null}]}', None, r"must be an array, not null"),
    ("data a number", changed(0, data=3), None, r"input 'in_0': 'data' must be an array, not 3"),
    ("data an object", changed(0, data={"0": 1}), None, r"must be an array, not an object"),
    ("word for a number", changed(0, data=["1.5", 2]), None, r"input 'in_0': element 0 is '1.5', but FP32 is a number"),
    ("null for a number", changed(0, data=[1, None]), None, r"input 'in_0': element 1 is null, but FP32"),
    ("true for a number", changed(0, data=[True, 2]), None, r"input 'in_0': element 0 is true, but FP32"),
    ("object for a number", changed(0, data=[1, {}]), None, r"input 'in_0': element 1 is an object"),
    ("beyond FP32", changed(0, data=[1, 1e39]), None, r"element 1 is 1e\+39, but FP32 is a number within ±3.403e\+38"),
    ("beyond FP64", b'{"inputs":[{"name":"in_0","shape":[1,2],"datatype":"FP32","data":[1' + b"0" * 400 + b",1]}]}", None, r"in_0|fit"),
    ("beyond INT8", changed(1, data=[128]), None, r"input 'in_1': element 0 is 128, but INT8 is a whole number from -128 to 127"),
    ("fraction for INT8", changed(1, data=[1.5]), None, r"input 'in_1': element 0 is 1.5, but INT8"),
    ("NaN for INT8", b'{"inputs":[{"name":"in_1","shape":[1],"datatype":"INT8","data":[NaN]}]}', None, r"element 0 is nan, but INT8"),
    ("true for INT8", changed(1, data=[True]), None, r"input 'in_1': element 0 is true, but INT8"),
    ("number for BYTES", changed(2, data=[1]), None, r"input 'in_2': element 0 is 1, but BYTES in JSON are strings"),
    ("null for BYTES", changed(2, data=[None]), None, r"input 'in_2': element 0 is null"),
    ("size without header", binary(8), None, r"input 'in_0' has 'binary_data_size' but the request has no header"),
    ("both", changed(0, parameters={"binary_data_size": 8}), b"\0" * 8, r"input 'in_0' has both 'data' and 'binary_data_size'"),
    ("size a word", binary("8"), b"\0" * 8, r"'binary_data_size' must be a number of bytes, got '8'"),
    ("size true", binary(True), b"\0", r"'binary_data_size' must be a number of bytes, got true"),
    ("size negative", binary(-8), b"\0" * 8, r"'binary_data_size' must be a number of bytes, got -8"),
    ("size not the shape's", binary(4), b"\0" * 4, r"input byte size mismatch for input 'in_0': FP32 of shape \[1, 2\] is 8 bytes, got 4"),
    ("size beyond the body", binary(8), b"\0" * 7, r"input 'in_0': 'binary_data_size' is 8; expecting 1 additional bytes"),
    ("size huge", binary(2**63), b"\0" * 8, r"expecting \d+ additional bytes"),
    ("bytes left over", binary(8), b"\0" * 9, r"unexpected additional input data: 1 bytes"),
    ("bytes for nobody", {"inputs": GOOD}, b"\0", r"unexpected additional input data: 1 bytes"),
    ("parameters a list", changed(0, parameters=[1]), None, r"'parameters' of input 'in_0' must be an object"),
    ("shared memory", changed(0, data=None, parameters={"shared_memory_region": "r"}), None, r"shared memory is not offered"),
    ("request parameters a word", {"inputs": GOOD, "parameters": "x"}, None, r"'parameters' of the request must be an object"),
    ("outputs an object", {"inputs": GOOD, "outputs": {"name": "out_0"}}, None, r"'outputs' must be an array"),
    ("output a word", {"inputs": GOOD, "outputs": ["out_0"]}, None, r"unexpected inference output 'null' requested"),
    ("unknown output", {"inputs": GOOD, "outputs": [{"name": "y"}]}, None, r"unexpected inference output 'y' .*out_0, out_1, out_2"),
    ("output twice", {"inputs": GOOD, "outputs": [{"name": "out_0"}] * 2}, None, r"output 'out_0' already exists in request"),
    (
        "output parameters",
        {"inputs": GOOD, "outputs": [{"name": "out_0", "parameters": 1}]},
        None,
        r"'parameters' of output 'out_0' must be an object",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("message", "data", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
@pytest.mark.parametrize("is_warm", [False, True])
def test_a_malformed_request_is_refused_with_words(message: Any, data: bytes | None, words: str, is_warm: bool) -> None:
    model = EchoModel(*MODEL)
    if is_warm:  # shapes that were seen before are recognised on another path
        model.decode({"inputs": GOOD})
    with pytest.raises(RequestRejected) as caught:
        model.decode(message, data)
    assert re.search(words, str(caught.value)), str(caught.value)
    assert caught.value.status == (501 if "shared memory" in words else 400)
    assert len(str(caught.value)) < 500


def test_the_request_that_the_others_are_made_from_is_good() -> None:
    assert EchoModel(*MODEL).ask({"inputs": GOOD}).message["outputs"][2]["data"] == ["a"]
    assert EchoModel(*MODEL).ask(binary(8), np.ones(2, "<f4").tobytes()).message["outputs"][0]["data"] == [1, 1]


def test_a_whole_number_may_be_written_with_a_point() -> None:
    assert EchoModel(*MODEL).ask(changed(0, shape=[1.0, 2.0])).message["outputs"][0]["shape"] == [1, 2]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x01\x00\x00", r"expecting 1 additional bytes for the length"),
        (b"\x05\x00\x00\x00abc", r"BYTES element 0 says it has 5 bytes; expecting 2 additional bytes"),
        (b"\x01\x00\x00\x00ab", r"unexpected additional input data for input 'in_0': 1 bytes after the last of 1"),
        (b"\xff\xff\xff\xffab", r"says it has 4294967295 bytes"),
        (b"", r"expecting 4 additional bytes"),
    ],
)
def test_bytes_whose_lengths_do_not_fit_are_refused(data: bytes, words: str) -> None:
    item = {"name": "in_0", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    with pytest.raises(RequestRejected, match=words):
        EchoModel(("BYTES", [-1])).decode({"inputs": [item]}, data)


def test_a_binary_bool_is_zero_or_one() -> None:
    item = {"name": "in_0", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}
    with pytest.raises(RequestRejected, match=r"input 'in_0': a BOOL is one byte, 0 or 1; got 2"):
        EchoModel(("BOOL", [-1])).decode({"inputs": [item]}, b"\x01\x02")


@pytest.mark.parametrize("datatype", ["FP32", "INT64", "UINT8", "FP16", "BOOL", "BYTES"])
@pytest.mark.parametrize("data", [[1, 2], [], None])
def test_a_shape_of_more_elements_than_64_bits_count_is_refused(datatype: str, data: list[int] | None) -> None:
    item: dict[str, Any] = {"name": "in_0", "shape": [2**31 - 1] * 3, "datatype": datatype}
    item |= {"parameters": {"binary_data_size": 8}} if data is None else {"data": data}
    with pytest.raises(RequestRejected, match=r"Shape does not match|byte size mismatch|expecting|cannot carry"):
        EchoModel((datatype, [-1, -1, -1])).decode({"inputs": [item]}, b"\0" * 8 if data is None else None)


@pytest.mark.parametrize("dims", [[2**31 - 1] * 3 + [0], [0, 2**31 - 1, 2**31 - 1, 1]])
def test_an_empty_shape_that_no_array_can_have_is_refused(dims: list[int]) -> None:
    item = {"name": "in_0", "shape": dims, "datatype": "FP32", "data": []}
    with pytest.raises(RequestRejected, match="no empty tensor can have the shape"):
        EchoModel(("FP32", [-1, -1, -1, -1])).decode({"inputs": [item]})


@pytest.mark.parametrize("data", [[0, 1], ["true", True], [None, True], [True, [True]]])
def test_a_bool_is_true_or_false(data: list[Any]) -> None:
    item = {"name": "in_0", "shape": [2], "datatype": "BOOL", "data": data}
    with pytest.raises(RequestRejected, match=r"input 'in_0': element \d is .*, but BOOL is true or false"):
        EchoModel(("BOOL", [-1])).decode({"inputs": [item]})


@pytest.mark.parametrize("json_length", [-2, 3, 2**31 - 1, -(2**31)])
def test_a_header_outside_the_body_is_refused(json_length: int) -> None:
    with pytest.raises(RequestRejected, match=r"inference header size should be in range \(0, 2\), got: "):
        EchoModel(*MODEL).decoder.decode(Codec.OIP, json_length, memoryview(b"{}"))


def test_an_unknown_codec_is_unsupported() -> None:
    with pytest.raises(RequestRejected, match="codec 9") as caught:
        EchoModel(*MODEL).decoder.decode(9, -1, memoryview(b"{}"))
    assert caught.value.status == 501


@pytest.mark.parametrize(
    ("tensors", "body", "words"),
    [
        (MODEL, b"", r"Raw request must only have 1 input \(found 1\) to be deduced but got 3 inputs in 'echo'"),
        ((("FP32", [-1, -1, -1]),), b"\0" * 8, r"raw input 'in_0' can not be deduced because there are more than one"),
        ((("FP32", [-1, 2]),), b"\0" * 9, r"input byte size mismatch for input 'in_0'.* is 8 bytes, got 9"),
        ((("FP32", [-1, -1]),), b"\0" * 9, r"input byte size mismatch"),
        ((("FP32", [-1, -1, 0]),), b"\0" * 9, r"input byte size mismatch"),
        ((("BYTES", [-1, 2]),), b"ab", r"For BYTE datatype raw input 'in_0', the model must have input shape \[1\]"),
        ((("BYTES", [-1, -1]),), b"ab", r"For BYTE datatype raw input"),
    ],
)
def test_raw_bytes_that_do_not_fit_are_refused(tensors: Any, body: bytes, words: str) -> None:
    with pytest.raises(RequestRejected, match=words):
        EchoModel(*tensors).ask_raw(body)


def test_an_optional_input_may_be_left_out() -> None:
    model = EchoModel(*MODEL[:2], optional=["in_1"])
    request = model.decode({"inputs": GOOD[:1], "outputs": [{"name": "out_0"}]})
    assert request.layout.names == ("in_0",)
    whole = model.decode({"inputs": GOOD[:2], "outputs": [{"name": "out_0"}]})
    assert whole.layout.signature != request.layout.signature


def test_inputs_of_different_lengths_are_never_joined_with_others() -> None:
    inputs = [GOOD[0], GOOD[1] | {"shape": [2], "data": [1, 2]}]
    assert EchoModel(*MODEL[:2]).decode({"inputs": inputs}).layout.signature is None


json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.integers(0, 2),
    st.sampled_from(["name", "shape", "datatype", "data", "parameters"]),
    json_value,
    st.none() | st.binary(max_size=20),
)
def test_any_value_in_any_key_is_answered_or_refused_and_never_breaks(
    place: int, key: str, value: Any, data: bytes | None
) -> None:
    model = EchoModel(*MODEL)
    model.decode({"inputs": GOOD})
    message = {"inputs": [dict(item) for item in GOOD]}
    message["inputs"][place][key] = value
    with contextlib.suppress(RequestRejected):
        model.ask(message, data)


@given(st.binary(max_size=60), st.integers(-3, 70))
def test_any_bytes_are_refused_and_never_break(body: bytes, json_length: int) -> None:
    with pytest.raises(RequestRejected):
        EchoModel(*MODEL).decoder.decode(Codec.OIP, json_length, memoryview(body))


@given(st.integers(0, 200), st.integers(0, 255))
def test_one_wrong_byte_in_a_good_request_never_breaks(position: int, byte: int) -> None:
    text = bytearray(json.dumps({"inputs": GOOD}).encode())
    text[position % len(text)] = byte
    with contextlib.suppress(RequestRejected):
        EchoModel(*MODEL).ask(bytes(text))
