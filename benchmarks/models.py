"""The three models that everything is measured with: tiny, digits, ResNet-50. `python -m benchmarks.models` makes them.

tiny and ResNet-50 have random weights: what they answer means nothing, what they cost is what such models cost. Their
batch axis is dynamic. All are written below `.bench/`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".bench" / "models"
OPSET = 17
IR_VERSION = 8
RESNET50_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
"""(width, blocks) of each stage: He, Zhang, Ren and Sun, CVPR 2016, table 1."""


class Model(NamedTuple):
    name: str
    path: Path
    input_name: str
    sample: NDArray[np.float32]
    """One row."""


def models() -> list[Model]:
    return [model(name) for name in ("tiny", "digits", "resnet50")]


def model(name: str) -> Model:
    """Return the model of that name, made where it is missing."""
    path = FOLDER / f"{name}.onnx"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes({"tiny": tiny, "digits": digits, "resnet50": resnet50}[name]())
        part.replace(path)
    shape = (1, 3, 224, 224) if name == "resnet50" else (1, 64)
    sample = np.random.default_rng(0).random(shape, dtype=np.float32)
    return Model(name, path, "pixels" if name == "digits" else "x", sample)


class _Graph:
    """Nodes and weights in the making; every method returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(1)

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def weight(self, values: NDArray[np.floating[Any]]) -> str:
        name = f"w_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def normal(self, *shape: int) -> str:
        """He initialization: neither vanishing nor exploding through many layers."""
        inputs = int(np.prod(shape[1:]))
        return self.weight(self._random.standard_normal(shape, dtype=np.float32) * np.float32((2 / inputs) ** 0.5))

    def dense(self, x: str, inputs: int, outputs: int) -> str:
        return self.node("Gemm", x, self.normal(outputs, inputs), self.weight(np.zeros(outputs)), transB=1)

    def conv(self, x: str, channels: tuple[int, int], size: int, stride: int, *, scale: float = 1.0) -> str:
        """Convolution and batch normalization, as networks are exported."""
        inputs, outputs = channels
        kernel = self.normal(outputs, inputs, size, size)
        y = self.node("Conv", x, kernel, kernel_shape=[size, size], strides=[stride] * 2, pads=[size // 2] * 4)
        statistics = [np.full(outputs, value) for value in (scale, 0.0, 0.0, 1.0)]
        return self.node("BatchNormalization", y, *map(self.weight, statistics))

    def model(self, name: str, shape: tuple[int, ...], result: str, outputs: int) -> bytes:
        self.nodes.append(helper.make_node("Identity", [result], ["y"], name="y"))
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", outputs])],
            self.weights,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        onnx.checker.check_model(made)
        return bytes(made.SerializeToString())


def tiny() -> bytes:
    """Return an MLP 64 → 16: as little work as a model can be."""
    graph = _Graph()
    hidden = graph.node("Relu", graph.dense("x", 64, 16))
    return graph.model("tiny", (64,), graph.dense(hidden, 16, 16), 16)


def digits() -> bytes:
    """Return the example's model."""
    return (ROOT / "examples" / "digits" / "model.onnx").read_bytes()


def resnet50() -> bytes:
    """Return ResNet-50 for 224 × 224 images and 1,000 classes: 25.6 million weights, 102 MB."""
    graph = _Graph()
    x = graph.node("Relu", graph.conv("x", (3, 64), 7, 2))
    x = graph.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for number, (width, blocks) in enumerate(RESNET50_STAGES):
        for block in range(blocks):
            stride = 2 if block == 0 and number > 0 else 1
            x = _bottleneck(graph, x, channels, width, stride)
            channels = 4 * width
    x = graph.node("Flatten", graph.node("GlobalAveragePool", x))
    return graph.model("resnet50", (3, 224, 224), graph.dense(x, channels, 1000), 1000)


def _bottleneck(graph: _Graph, x: str, channels: int, width: int, stride: int) -> str:
    """Return 1 × 1, 3 × 3, 1 × 1 beside a shortcut; the stride is in the middle, as in today's exports."""
    y = graph.node("Relu", graph.conv(x, (channels, width), 1, 1))
    y = graph.node("Relu", graph.conv(y, (width, width), 3, stride))
    y = graph.conv(y, (width, 4 * width), 1, 1, scale=0.2)
    if channels != 4 * width:
        x = graph.conv(x, (channels, 4 * width), 1, stride)
    return graph.node("Relu", graph.node("Add", x, y))


if __name__ == "__main__":
    for found in models():
        print(f"{found.path.relative_to(ROOT)}: {found.path.stat().st_size / 1e6:.1f} MB")
