"""Inference requests as bytes: JSON, and binary tensors."""

from __future__ import annotations

import json
from typing import NamedTuple

from benchmarks.models import Model


class Body(NamedTuple):
    data: bytes
    headers: dict[str, str]


def json_body(model: Model) -> Body:
    tensor = {"name": model.input_name, "shape": model.sample.shape, "datatype": "FP32"}
    data = json.dumps({"inputs": [tensor | {"data": [round(float(v), 4) for v in model.sample.ravel()]}]}).encode()
    return Body(data, {"content-type": "application/json"})


def binary_body(model: Model) -> Body:
    """Binary both ways: no number is written as text."""
    raw = model.sample.tobytes()
    tensor = {"name": model.input_name, "shape": model.sample.shape, "datatype": "FP32"}
    request = {
        "parameters": {"binary_data_output": True},
        "inputs": [tensor | {"parameters": {"binary_data_size": len(raw)}}],
    }
    head = json.dumps(request).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    return Body(head + raw, headers)
