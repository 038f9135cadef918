"""Tiny ONNX models, built when they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from serve.core.events import LoadOrder

Dims = list[int | str | None] | None

ONNX_TYPES: dict[str, int] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def value(name: str, kind: int, dims: Dims) -> Any:
    return helper.make_tensor_value_info(name, kind, dims)


def model(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], initializers: list[Any] | None = None, opset: int = 17
) -> ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers or [])
    domains = {node.domain for node in nodes if node.domain}
    imports = [helper.make_opsetid("", opset), *[helper.make_opsetid(domain, 1) for domain in sorted(domains)]]
    made: ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return made


def identity(datatype: str, dims: Dims = None, pairs: int = 1) -> ModelProto:
    """Outputs `y0…` answer inputs `x0…`."""
    kind = ONNX_TYPES[datatype]
    shape: Dims = ["batch", 2] if dims is None else dims
    return model(
        [helper.make_node("Identity", [f"x{i}"], [f"y{i}"]) for i in range(pairs)],
        [value(f"x{i}", kind, shape) for i in range(pairs)],
        [value(f"y{i}", kind, shape) for i in range(pairs)],
    )


def perceptron() -> ModelProto:
    """x [batch, 64] → y [batch, 16]."""
    weights = np.random.default_rng(1).standard_normal((64, 16)).astype(np.float32)
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        [value("x", TensorProto.FLOAT, ["batch", 64])],
        [value("y", TensorProto.FLOAT, ["batch", 16])],
        [numpy_helper.from_array(weights, "w")],
    )


def first_row() -> ModelProto:
    """x [?, 2] → y [?, 2], of which there is always one row."""
    return model(
        [helper.make_node("Compress", ["x", "chosen"], ["y"], axis=0)],
        [value("x", TensorProto.FLOAT, [None, 2])],
        [value("y", TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(np.array([True]), "chosen")],
    )


def mixing(op: str, **attributes: Any) -> ModelProto:
    """x [rows, 2] → y [rows, 2] by an operator along the first axis, which therefore is no batch."""
    constants = [numpy_helper.from_array(np.array(0), "axis")]
    inputs = {"CumSum": ["x", "axis"]}.get(op, ["x"])
    return model(
        [helper.make_node(op, inputs, ["y"], **attributes)],
        [value("x", TensorProto.FLOAT, ["rows", 2])],
        [value("y", TensorProto.FLOAT, ["rows", 2])],
        constants if len(inputs) > 1 else [],
    )


def order(folder: Path, made: ModelProto | bytes, **changes: Any) -> LoadOrder:
    """Write the model into `folder` and return an order to load it."""
    (folder / "model.onnx").write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    return LoadOrder("m-r1-aaaaaaaa", "m", 1, str(folder), "model.onnx", "onnx", **changes)
