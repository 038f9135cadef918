"""Samples: every datatype, every shape; what a replica's own decoder accepts."""

from __future__ import annotations

import json
import math

import pytest

from runtime.decode import RequestDecoder
from runtime.engines.base import Loaded
from runtime.tensors import DATATYPES, RequestRejected
from serve.control.sample import SIZES, Body, Sample, candidates, given
from serve.core.events import TensorSpec
from serve.core.frames import NO_JSON_LENGTH, Codec
from serve.core.revision import Signature

LIMIT_BYTES = 64 << 20


def signature(*inputs: TensorSpec, batchable: bool = True, output: str = "FP32") -> Signature:
    return Signature("onnxruntime_onnx", inputs, (TensorSpec("y", output, (-1, 2)),), batchable)


def decode(known: Signature, body: Body) -> None:
    """Have a replica's decoder read the body. Raises RequestRejected."""
    loaded = Loaded(known.platform, "1", known.inputs, known.outputs, known.batchable, 0)
    RequestDecoder(loaded, "m").decode(Codec.OIP, body.json_length, memoryview(body.data))


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("shape", [(-1, 3), (), (2, 2), (-1, -1, 5), (0,), (-1, 5000)])
def test_a_replica_accepts_the_sample_in_each_of_its_forms(datatype: str, shape: tuple[int, ...]) -> None:
    inputs = (TensorSpec("a", datatype, shape), TensorSpec("b", "INT64", (-1,)))
    known = signature(*inputs, batchable=shape[:1] == (-1,))
    for sample in candidates(known, LIMIT_BYTES):
        decode(known, sample.body())
        decode(known, sample.binary_body())
        if sample.has_json:
            decode(known, sample.json_body())


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_outputs_without_a_json_form_are_asked_for_in_binary(datatype: str) -> None:
    known = signature(TensorSpec("a", "FP32", (-1, 3)), output=datatype)
    sample = candidates(known, LIMIT_BYTES)[0]
    decode(known, sample.body())
    with pytest.raises(RequestRejected):  # what the flag is there for
        decode(known, Sample(sample.inputs).body())


def test_unknown_dimensions_are_tried_in_growing_sizes_and_the_batch_stays_one() -> None:
    samples = candidates(signature(TensorSpec("x", "FP32", (-1, -1, 3))), LIMIT_BYTES)
    assert [sample.inputs[0].shape for sample in samples] == [(1, size, 3) for size in SIZES]


def test_the_first_dimension_of_an_unbatchable_model_is_unknown_like_the_others() -> None:
    samples = candidates(signature(TensorSpec("x", "FP32", (-1,)), batchable=False), LIMIT_BYTES)
    assert [sample.inputs[0].shape for sample in samples] == [(size,) for size in SIZES]


def test_a_model_without_unknown_dimensions_is_tried_once() -> None:
    assert len(candidates(signature(TensorSpec("x", "FP32", (-1, 64))), LIMIT_BYTES)) == 1


def test_samples_larger_than_a_request_may_be_are_not_tried() -> None:
    samples = candidates(signature(TensorSpec("x", "FP32", (-1, -1, -1, -1))), 1 << 20)
    assert samples
    assert all(sample.size_bytes <= 1 << 20 for sample in samples)
    assert candidates(signature(TensorSpec("x", "FP64", (1 << 30,))), 1 << 20) == []


def test_a_datatype_nobody_knows_has_no_sample() -> None:
    assert candidates(signature(TensorSpec("x", "COMPLEX64", (1,))), LIMIT_BYTES) == []


def test_small_samples_are_json_and_large_ones_binary() -> None:
    small, large = (Sample((TensorSpec("x", "FP32", (1, width)),)) for width in (4, 100_000))
    assert small.body().json_length == NO_JSON_LENGTH
    assert json.loads(small.body().data)["inputs"][0]["data"] == [0.0] * 4
    assert large.body().json_length > 0
    assert len(large.body().data) == large.body().json_length + 400_000 == large.body().json_length + large.size_bytes


@pytest.mark.parametrize("value", [1.5, math.nan, math.inf, 1 << 70, "ünicode", None, [[1], {"a": True}]])
def test_a_given_sample_arrives_as_it_was_given(value: object) -> None:
    body = given({"inputs": [{"data": [value]}]})
    assert body.json_length == NO_JSON_LENGTH
    assert repr(json.loads(body.data)["inputs"][0]["data"]) == repr([value])
