"""Models for the platform: scripted ones that behave as told, and ONNX files that are wrong in one way each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests.runtime.models import model, value


def scripted(folder: Path, file: str = "model.json", **script: Any) -> str:
    """Write a scripted model and the serve.yaml that runs it; return the path of the yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps(script))
    settings = folder / "serve.yaml"
    settings.write_text(json.dumps({"model": file, "engine": "scripted"}))
    return str(settings)


def row(*values: float) -> dict[str, Any]:
    """Return a request to a scripted model: one row of four values."""
    return {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [*values, 0, 0, 0, 0][:4]}]}


def doubling(*, operator: str = "Add", domain: str = "", opset: int = 17) -> ModelProto:
    """x [batch, 2] → y = x + x."""
    floats = TensorProto.FLOAT
    node = helper.make_node(operator, ["x", "x"], ["y"], domain=domain)
    return model([node], [value("x", floats, ["batch", 2])], [value("y", floats, ["batch", 2])], opset=opset)


def external(folder: Path, location: str, *, write: bool = True) -> Path:
    """Write a model whose weights are in another file; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    floats = TensorProto.FLOAT
    made = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", floats, ["batch", 64])],
        [value("y", floats, ["batch", 64])],
        [numpy_helper.from_array(weights, "w")],
    )
    path = folder / "model.onnx"
    onnx.save(made, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (folder / "weights.bin").rename(folder / "weights.tmp")
    stored = onnx.load(path, load_external_data=False)
    for entry in stored.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(stored.SerializeToString())
    if write:
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        (folder / "weights.tmp").rename(folder / location)
    return path
