"""Every datatype, in every encoding, comes back as it went in (reference: own checklist, items 1 to 3)."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime import encode
from runtime.tensors import DATATYPES, RequestRejected, object_array
from serve.core.frames import Content
from tests.runtime.echo import SHAPES, EchoModel, binary_of, read_answer, sample

JSON_TYPES = sorted(set(DATATYPES) - {"FP16", "BF16"})
BINARY = {"parameters": {"binary_data": True}}


def tensor(datatype: str, values: Any, *, place: int = 0, binary: bool = False, flat: bool = True) -> dict[str, Any]:
    written: dict[str, Any] = {"name": f"in_{place}", "shape": list(values.shape), "datatype": datatype}
    if binary:
        return written | {"parameters": {"binary_data_size": len(binary_of(datatype, values))}}
    listed = (values.ravel() if flat else values).tolist()
    return written | {"data": as_text(listed)}


def as_text(listed: Any) -> Any:
    if isinstance(listed, list):
        return [as_text(item) for item in listed]
    return listed.decode() if isinstance(listed, bytes) else listed


def model_of(datatype: str, values: Any) -> EchoModel:
    return EchoModel((datatype, [-1] * values.ndim), batchable=False)


def from_json(datatype: str, data: Any, shape: list[int]) -> Any:
    if datatype == "BYTES":
        return object_array([item.encode() for item in data], tuple(shape))
    return np.array(data, dtype=DATATYPES[datatype].dtype).reshape(shape)


@pytest.mark.parametrize("datatype", JSON_TYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("flat", [True, False])
def test_json_in_and_out_keeps_every_value(datatype: str, shape: tuple[int, ...], flat: bool) -> None:
    values = sample(datatype, shape)
    if shape == () and not flat:
        message = {"inputs": [tensor(datatype, values) | {"data": as_text(values.tolist())}]}
    else:
        message = {"inputs": [tensor(datatype, values, flat=flat)]}
    answer = model_of(datatype, values).ask(message)
    assert answer.content == Content.JSON
    assert (answer.output["datatype"], answer.output["shape"]) == (datatype, list(shape))
    np.testing.assert_array_equal(from_json(datatype, answer.output["data"], list(shape)), values)


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
@pytest.mark.parametrize("shape", SHAPES)
def test_binary_in_and_out_keeps_every_byte(datatype: str, shape: tuple[int, ...]) -> None:
    values = sample(datatype, shape)
    message = {"inputs": [tensor(datatype, values, binary=True)], "outputs": [{"name": "out_0"} | BINARY]}
    answer = model_of(datatype, values).ask(message, binary_of(datatype, values))
    assert answer.binary == binary_of(datatype, values)
    assert answer.output["parameters"] == {"binary_data_size": len(answer.binary)}
    assert "data" not in answer.output
    # Without a single byte of binary data the answer is plain JSON.
    assert answer.content == (Content.OIP_BINARY if answer.binary else Content.JSON)


@pytest.mark.parametrize("datatype", JSON_TYPES)
def test_binary_in_and_json_out_and_the_reverse_agree(datatype: str) -> None:
    values = sample(datatype, (2, 3))
    model = model_of(datatype, values)
    as_json = model.ask({"inputs": [tensor(datatype, values, binary=True)]}, binary_of(datatype, values))
    as_binary = model.ask({"inputs": [tensor(datatype, values)], "outputs": [{"name": "out_0"} | BINARY]})
    np.testing.assert_array_equal(from_json(datatype, as_json.output["data"], [2, 3]), values)
    assert as_binary.binary == binary_of(datatype, values)


def test_bytes_that_are_no_text_survive_as_binary_and_are_refused_as_json() -> None:
    values = object_array([b"\xff\xfe", b"\x00", b""], (3,))
    model = EchoModel(("BYTES", [-1]))
    message = {"inputs": [tensor("BYTES", values, binary=True)], "outputs": [{"name": "out_0"} | BINARY]}
    assert model.ask(message, binary_of("BYTES", values)).binary == binary_of("BYTES", values)
    with pytest.raises(RequestRejected, match=r"output 'out_0' holds bytes that are not UTF-8.*binary_data"):
        model.ask(message | {"outputs": [{"name": "out_0"}]}, binary_of("BYTES", values))


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_is_refused_as_json_both_ways(datatype: str) -> None:
    values = sample(datatype, (2,))
    model = EchoModel((datatype, [-1]))
    with pytest.raises(RequestRejected, match=f"input 'in_0': JSON cannot carry {datatype}"):
        model.decode({"inputs": [tensor(datatype, values)], "outputs": [{"name": "out_0"} | BINARY]})
    with pytest.raises(RequestRejected, match=f"output 'out_0' is {datatype}, which JSON cannot carry"):
        model.decode({"inputs": [tensor(datatype, values, binary=True)]}, values.tobytes())


def test_not_finite_numbers_travel_as_the_tokens_nan_and_infinity() -> None:
    model = EchoModel(("FP32", [-1]), ("FP64", [-1]))
    text = (
        b'{"inputs":[{"name":"in_0","shape":[4],"datatype":"FP32","data":[NaN,1.5,Infinity,-Infinity]},'
        b'{"name":"in_1","shape":[4],"datatype":"FP64","data":[0.1,-Infinity,NaN,2]}]}'
    )
    first, second = model.ask(text).message["outputs"]
    np.testing.assert_array_equal(first["data"], [np.nan, 1.5, np.inf, -np.inf])
    np.testing.assert_array_equal(second["data"], [0.1, -np.inf, np.nan, 2])


def test_two_inputs_may_come_one_as_json_and_one_as_binary_in_any_order() -> None:
    model = EchoModel(("FP32", [-1, 2]), ("BYTES", [-1]))
    numbers, words = sample("FP32", (1, 2)), sample("BYTES", (1,))
    inputs = [tensor("BYTES", words, place=1, binary=True), tensor("FP32", numbers)]
    first, second = model.ask({"inputs": inputs}, binary_of("BYTES", words)).message["outputs"]
    np.testing.assert_array_equal(np.array(first["data"], np.float32), numbers.ravel())
    assert second["data"] == ["a\x00b"]


def test_binary_inputs_are_taken_in_the_order_of_the_request() -> None:
    model = EchoModel(("FP32", [-1]), ("INT8", [-1]), batchable=False)
    a, b = sample("FP32", (3,)), sample("INT8", (2,))
    inputs = [tensor("INT8", b, place=1, binary=True), tensor("FP32", a, binary=True)]
    answer = model.ask({"inputs": inputs, "parameters": {"binary_data_output": True}}, b.tobytes() + a.tobytes())
    assert answer.binary == a.tobytes() + b.tobytes()


@pytest.mark.parametrize("is_binary", [False, True])
def test_an_answer_larger_than_a_frame_is_refused_and_hurts_no_batch_mate(
    monkeypatch: pytest.MonkeyPatch, is_binary: bool
) -> None:
    monkeypatch.setattr(encode, "MAX_ANSWER_BYTES", 4000)
    model = EchoModel(("FP32", [-1, -1]))

    def ask(rows: int) -> Any:
        item = {"name": "in_0", "datatype": "FP32", "shape": [rows, 100], "data": [0.5] * (100 * rows)}
        return model.decode({"inputs": [item], "parameters": {"binary_data_output": is_binary}})

    members = [ask(1), ask(20), ask(2)]
    array = np.full((23, 100), 0.5, np.float32)
    first, large, last = model.encoder.encode(members, {"out_0": array})
    assert isinstance(large, RequestRejected)
    assert (large.status, large.code) == (413, "too_large")
    assert read_answer(first).output["shape"] == [1, 100]
    assert read_answer(last).output["shape"] == [2, 100]


@pytest.mark.parametrize("chosen", [*itertools.permutations(range(3), 2), (0, 1, 2), (2, 1, 0), (1,)])
def test_outputs_come_in_the_order_and_choice_of_the_request(chosen: tuple[int, ...]) -> None:
    model = EchoModel(("INT32", [-1]), ("INT32", [-1]), ("INT32", [-1]))
    inputs = [tensor("INT32", np.array([i], np.int32), place=i) for i in range(3)]
    outputs = [{"name": f"out_{i}", "parameters": {"binary_data": i == 1}} for i in chosen]
    answer = model.ask({"inputs": inputs, "outputs": outputs})
    assert [output["name"] for output in answer.message["outputs"]] == [f"out_{i}" for i in chosen]
    assert [output.get("data") for output in answer.message["outputs"]] == [None if i == 1 else [i] for i in chosen]


@pytest.mark.parametrize(
    ("request_wide", "own", "is_binary"),
    [
        (None, None, False),
        (True, None, False),  # the trap: a named output is JSON unless it says otherwise itself
        (True, False, False),
        (True, True, True),
        (False, True, True),
        (None, True, True),
    ],
)
def test_the_setting_of_a_named_output_wins(request_wide: bool | None, own: bool | None, is_binary: bool) -> None:
    message: dict[str, Any] = {"inputs": [tensor("FP32", sample("FP32", (2,)))], "outputs": [{"name": "out_0"}]}
    if request_wide is not None:
        message["parameters"] = {"binary_data_output": request_wide}
    if own is not None:
        message["outputs"][0]["parameters"] = {"binary_data": own}
    assert ("data" in EchoModel(("FP32", [-1])).ask(message).output) is not is_binary


@pytest.mark.parametrize("outputs", [None, []])
@pytest.mark.parametrize("request_wide", [True, False])
def test_the_setting_of_the_request_counts_where_no_output_is_named(outputs: Any, request_wide: bool) -> None:
    message = {"inputs": [tensor("FP32", sample("FP32", (2,)))], "parameters": {"binary_data_output": request_wide}}
    if outputs is not None:
        message["outputs"] = outputs
    assert ("data" in EchoModel(("FP32", [-1])).ask(message).output) is not request_wide


@pytest.mark.parametrize("client_id", ["", "a", 'quo"te', "é\u2028", "x" * 300])
def test_the_id_of_the_client_comes_back(client_id: str) -> None:
    message = {"id": client_id, "inputs": [tensor("FP32", sample("FP32", (2,)))]}
    answer = EchoModel(("FP32", [-1])).ask(message)
    assert answer.message["id"] == client_id
    assert (answer.message["model_name"], answer.message["model_version"]) == ("echo", "3")


def test_unknown_parameters_and_keys_are_ignored() -> None:
    item = tensor("FP32", sample("FP32", (2,))) | {"parameters": {"mystery": 1}, "more": {}}
    outputs = [{"name": "out_0", "parameters": {"classify": 3}, "x": 1}]
    message = {"inputs": [item], "outputs": outputs, "parameters": {"priority": 1, "deep": {"er": []}}, "y": None}
    answer = EchoModel(("FP32", [-1])).ask(message)
    assert "id" not in answer.message
    assert len(answer.output["data"]) == 2


def test_raw_bytes_are_the_one_input_and_all_outputs_come_as_binary() -> None:
    values = sample("FP32", (1, 3))
    assert EchoModel(("FP32", [-1, 3])).ask_raw(values.tobytes()).output["shape"] == [1, 3]
    assert EchoModel(("FP32", [-1, -1])).ask_raw(values.tobytes()).output["shape"] == [1, 3]
    assert EchoModel(("FP32", [-1, 3]), batchable=False).ask_raw(values.tobytes() * 2).output["shape"] == [2, 3]
    assert EchoModel(("FP32", [-1, 3])).ask_raw(values.tobytes()).binary == values.tobytes()
    assert EchoModel(("BYTES", [-1, 1])).ask_raw(b"a\x00\xff").binary == b"\x03\x00\x00\x00a\x00\xff"


numbers = st.sampled_from(sorted(set(DATATYPES) - {"BYTES", "BOOL", "BF16"})).flatmap(
    lambda name: st.tuples(
        st.just(name),
        hnp.arrays(DATATYPES[name].dtype, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)),
    )
)


@given(numbers)
def test_any_number_survives_json_to_the_last_bit(case: tuple[str, Any]) -> None:
    datatype, values = case
    if datatype == "FP16":
        return
    answer = model_of(datatype, values).ask({"inputs": [tensor(datatype, values)]})
    back = np.array(answer.output["data"], dtype=values.dtype).reshape(values.shape)
    np.testing.assert_array_equal(back, values)


@given(numbers)
def test_any_number_survives_binary_to_the_last_bit(case: tuple[str, Any]) -> None:
    datatype, values = case
    message = {"inputs": [tensor(datatype, values, binary=True)], "outputs": [{"name": "out_0"} | BINARY]}
    assert model_of(datatype, values).ask(message, values.tobytes()).binary == values.tobytes()


@given(st.lists(st.text(), max_size=5))
def test_any_text_survives_json(words: list[str]) -> None:
    message = {"inputs": [{"name": "in_0", "shape": [len(words)], "datatype": "BYTES", "data": words}]}
    assert EchoModel(("BYTES", [-1])).ask(message).output["data"] == words


@given(st.lists(st.binary(), max_size=5))
def test_any_bytes_survive_binary(items: list[bytes]) -> None:
    values = object_array(items, (len(items),))
    message = {"inputs": [tensor("BYTES", values, binary=True)], "outputs": [{"name": "out_0"} | BINARY]}
    answer = EchoModel(("BYTES", [-1])).ask(message, binary_of("BYTES", values))
    assert answer.binary == binary_of("BYTES", values)


member = st.tuples(st.integers(0, 3), st.booleans(), st.booleans(), st.one_of(st.none(), st.text(max_size=3)))


@given(st.lists(member, min_size=1, max_size=6), st.sampled_from(["FP32", "FP64", "INT64", "BOOL", "BYTES"]))
def test_a_member_of_a_batch_is_answered_as_if_it_were_alone(members: list[tuple[Any, ...]], datatype: str) -> None:
    model = EchoModel((datatype, [-1, 2]), ("FP32", [-1]))
    requests, expected = [], []
    for number, (rows, binary_in, binary_out, client_id) in enumerate(members):
        values = np.roll(sample(datatype, (rows + 1, 2)).ravel(), number).reshape(rows + 1, 2)[:rows]
        inputs = [
            tensor(datatype, values, binary=binary_in),
            tensor("FP32", np.full(rows, np.nan if number == 2 else number, np.float32), place=1),
        ]
        outputs = [{"name": "out_1"}, {"name": "out_0", "parameters": {"binary_data": binary_out}}]
        message = {"inputs": inputs, "outputs": outputs} | ({"id": client_id} if client_id is not None else {})
        request = model.decode(message, binary_of(datatype, values) if binary_in else None)
        requests.append(request)
        expected.append(model.answer([request])[0])
    assert len({request.layout.signature for request in requests}) == 1
    assert [json.dumps(a) for a in map(comparable, model.answer(requests))] == [
        json.dumps(a) for a in map(comparable, expected)
    ]


def comparable(answer: Any) -> Any:
    return [answer.content, answer.message, list(answer.binary)]
