"""Sample requests for a model of which only the signature is known. Pure."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import orjson

from serve.core.errors import SampleFailed
from serve.core.events import TensorSpec
from serve.core.frames import NO_JSON_LENGTH
from serve.core.revision import Signature

SIZES = (1, 8, 16, 32, 64, 128, 224)
"""What an unknown dimension is tried as; 224 is the usual picture."""

JSON_ELEMENTS = 4096
"""Larger samples travel as binary tensors."""

_BYTES_PER_ELEMENT = {
    "BOOL": 1,
    "UINT8": 1,
    "INT8": 1,
    "UINT16": 2,
    "INT16": 2,
    "FP16": 2,
    "BF16": 2,
    "UINT32": 4,
    "INT32": 4,
    "FP32": 4,
    "UINT64": 8,
    "INT64": 8,
    "FP64": 8,
    "BYTES": 4,  # an empty string: its length alone
}
_JSON_ZERO: dict[str, Any] = {"BOOL": False, "BYTES": "", "FP32": 0.0, "FP64": 0.0}
_BINARY_ONLY = frozenset({"FP16", "BF16"})
"""The protocol has no JSON form for these."""


@dataclass(frozen=True, slots=True)
class Body:
    """A request body as a caller would send it."""

    data: bytes
    json_length: int
    """Bytes of JSON before binary tensors, or NO_JSON_LENGTH where all is JSON."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A request of zeros (empty strings for BYTES). Every shape is concrete."""

    inputs: tuple[TensorSpec, ...]
    wants_binary_outputs: bool = False
    """Some output has no JSON form."""

    @property
    def elements(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.inputs)

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(math.prod(tensor.shape) * _BYTES_PER_ELEMENT[tensor.datatype] for tensor in self.inputs)

    @property
    def has_json(self) -> bool:
        return not any(tensor.datatype in _BINARY_ONLY for tensor in self.inputs)

    def body(self) -> Body:
        """Return the smaller form that is valid: JSON, or binary tensors for much data and 16-bit floats."""
        return self.json_body() if self.has_json and self.elements <= JSON_ELEMENTS else self.binary_body()

    def json_body(self) -> Body:
        inputs = [
            _head(tensor) | {"data": [_JSON_ZERO.get(tensor.datatype, 0)] * math.prod(tensor.shape)}
            for tensor in self.inputs
        ]
        request: dict[str, Any] = {"inputs": inputs}
        if self.wants_binary_outputs:
            request["parameters"] = {"binary_data_output": True}
        return Body(orjson.dumps(request), NO_JSON_LENGTH)

    def binary_body(self) -> Body:
        sizes = [math.prod(tensor.shape) * _BYTES_PER_ELEMENT[tensor.datatype] for tensor in self.inputs]
        inputs = [
            _head(tensor) | {"parameters": {"binary_data_size": size}}
            for tensor, size in zip(self.inputs, sizes, strict=True)
        ]
        head = orjson.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
        return Body(head + bytes(sum(sizes)), len(head))


def candidates(signature: Signature, limit_bytes: int) -> list[Sample]:
    """Return the samples to try, smallest first; none where a datatype is unknown or the smallest is too large."""
    if any(tensor.datatype not in _BYTES_PER_ELEMENT for tensor in signature.inputs):
        return []
    wants_binary_outputs = any(tensor.datatype in _BINARY_ONLY for tensor in signature.outputs)
    tried: dict[Sample, None] = {}
    for size in SIZES:
        inputs = tuple(_concrete(tensor, size, signature.batchable) for tensor in signature.inputs)
        sample = Sample(inputs, wants_binary_outputs)
        if sample.size_bytes > limit_bytes:
            break
        tried[sample] = None  # without unknown dimensions all sizes give the same sample
    return list(tried)


def given(request: dict[str, Any]) -> Body:
    """Return the body of a sample that a person gave. Raise SampleFailed where it nests too deep."""
    try:
        try:
            return Body(orjson.dumps(request), NO_JSON_LENGTH) if _is_finite(request) else _with_nan(request)
        except orjson.JSONEncodeError:  # integers beyond 64 bits
            return _with_nan(request)
    except RecursionError:
        raise SampleFailed("the sample's JSON nests too deep for any tensor; give a valid request") from None


def _with_nan(request: dict[str, Any]) -> Body:
    return Body(json.dumps(request).encode(), NO_JSON_LENGTH)


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    return not isinstance(value, list) or all(map(_is_finite, value))


def _head(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "shape": list(tensor.shape), "datatype": tensor.datatype}


def _concrete(tensor: TensorSpec, size: int, batchable: bool) -> TensorSpec:
    shape = tuple(
        dimension if dimension >= 0 else 1 if axis == 0 and batchable else size
        for axis, dimension in enumerate(tensor.shape)
    )
    return TensorSpec(tensor.name, tensor.datatype, shape)
