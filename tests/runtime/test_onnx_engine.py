"""What is particular to ONNX Runtime: failures of loading, which models can be batched."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.engines.base import EngineError, InputRejected, TensorSpec, open_engine
from runtime.engines.onnx import OnnxEngine, is_batchable
from tests.runtime import models
from tests.runtime.models import model, value

FLOAT = TensorProto.FLOAT
X, Y = value("x", FLOAT, ["batch", 2]), value("y", FLOAT, ["batch", 2])


def load_error(folder: Path, made: Any) -> EngineError:
    with pytest.raises(EngineError) as caught:
        open_engine("onnx").load(models.order(folder, made))
    return caught.value


def with_external_weights(folder: Path, location: str) -> Any:
    """Save a model with its weights in `weights.bin`; return it with another location written into it."""
    onnx.save_model(
        models.perceptron(),
        folder / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    made = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in made.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    return made


def test_a_model_that_is_cut_short_is_invalid(tmp_path: Path) -> None:
    error = load_error(tmp_path, models.perceptron().SerializeToString()[:300])
    assert error.code == "model_invalid"
    assert "'model.onnx' is not an ONNX model, or it is cut short" in str(error)


@pytest.mark.parametrize(("domain", "name"), [("", "Nope"), ("com.acme", "com.acme:Nope")])
def test_an_unknown_operator_is_named(tmp_path: Path, domain: str, name: str) -> None:
    error = load_error(tmp_path, model([helper.make_node("Nope", ["x"], ["y"], domain=domain)], [X], [Y]))
    assert error.code == "model_unsupported"
    assert f"uses the operator {name}" in str(error)
    assert "ONNX Runtime" in str(error)


def test_an_unknown_opset_is_named_beside_the_newest_that_works(tmp_path: Path) -> None:
    error = load_error(tmp_path, model([helper.make_node("Relu", ["x"], ["y"])], [X], [Y], opset=99))
    assert error.code == "model_unsupported"
    assert "has opset 99" in str(error)
    assert "export it with opset" in str(error)


def test_a_newer_file_format_is_unsupported(tmp_path: Path) -> None:
    made = models.perceptron()
    made.ir_version = 99
    error = load_error(tmp_path, made)
    assert error.code == "model_unsupported"
    assert "99" in str(error)


@pytest.mark.parametrize("location", ["gone.bin", "../weights.bin", "/etc/hostname"])
def test_weights_that_are_missing_or_outside_the_folder_are_named(tmp_path: Path, location: str) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\0" * 5000)
    inner = tmp_path / "model"
    inner.mkdir()
    error = load_error(inner, with_external_weights(inner, location))
    assert error.code == "model_files_missing"
    assert "Deploy the whole folder" in str(error)


def test_weights_beside_the_model_are_found(tmp_path: Path) -> None:
    engine = OnnxEngine()
    loaded = engine.load(models.order(tmp_path, with_external_weights(tmp_path, "weights.bin")))
    assert loaded.inputs == (TensorSpec("x", "FP32", (-1, 64)),)


@pytest.mark.parametrize(
    ("output", "nodes", "words"),
    [
        (value("y", TensorProto.BFLOAT16, ["batch", 2]), [helper.make_node("Cast", ["x"], ["y"], to=16)], "bfloat16"),
        (
            helper.make_tensor_sequence_value_info("y", FLOAT, None),
            [helper.make_node("SequenceConstruct", ["x"], ["y"])],
            "seq(tensor(float))",
        ),
    ],
)
def test_types_that_cannot_be_served_are_named(tmp_path: Path, output: Any, nodes: list[Any], words: str) -> None:
    error = load_error(tmp_path, model(nodes, [X], [output]))
    assert error.code == "model_unsupported"
    assert "output 'y'" in str(error)
    assert words in str(error)
    assert "cannot be served yet" in str(error)


def test_maps_come_with_the_advice_how_to_avoid_them(tmp_path: Path) -> None:
    output = onnx.ValueInfoProto(name="y")
    output.type.sequence_type.elem_type.map_type.key_type = TensorProto.INT64
    output.type.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = FLOAT
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    error = load_error(tmp_path, model([node], [X], [output]))
    assert error.code == "model_unsupported"
    assert "zipmap=False" in str(error)


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ([["n", 2]], [["n", 3]], True),
        ([[None, 2]], [[None]], True),
        ([["n", 2]], [["unk__0", 3]], True),
        ([["n", 2], ["n"]], [["n"]], True),
        ([[1, 2]], [["n", 2]], False),
        ([["n", 2]], [[1, 2]], False),
        ([["n", 2], []], [["n"]], False),
        ([["n", 2]], [[]], False),
        ([], [["n"]], False),
        ([["n", 2], ["m", 2]], [["n", 3]], False),  # two lengths: rows of one request would meet those of another
        ([["n", 2]], [["n", "n"]], False),  # every row against every row
        ([["n", "n"]], [["n"]], False),
        ([["n", 2]], [["k", 2]], False),  # as many rows as the values say
    ],
)
def test_only_rows_that_cannot_mix_are_joined(inputs: Any, outputs: Any, expected: bool) -> None:
    assert is_batchable(inputs, outputs) is expected


def test_strings_must_be_text(tmp_path: Path) -> None:
    engine = OnnxEngine()
    engine.load(models.order(tmp_path, models.identity("BYTES")))
    with pytest.raises(InputRejected, match="input 'x0' holds bytes that are not UTF-8"):
        engine.run({"x0": np.array([[b"\xff", b"a"]], dtype=object)}, ["y0"])


def test_importing_the_engine_starts_no_thread() -> None:
    """The zygote forks after this import."""
    code = "import runtime.engines.onnx, os; print(len(os.listdir('/proc/self/task')))"
    environment = {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"


@pytest.mark.parametrize("op", ["MatMul", "Add"])
def test_sizes_that_do_not_fit_a_model_of_open_sizes_are_the_callers_fault(tmp_path: Path, op: str) -> None:
    constant = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    node = helper.make_node(op, ["x", "w"], ["y"])
    x, y = value("x", FLOAT, ["rows", "columns"]), value("y", FLOAT, ["rows", "out"])
    engine = open_engine("onnx")
    engine.load(models.order(tmp_path, model([node], [x], [y], [constant])))
    with pytest.raises(InputRejected, match="do not fit this model"):
        engine.run({"x": np.ones((1, 5), np.float32)}, ["y"])
    engine.close()


def test_the_engine_refuses_settings_it_does_not_know(tmp_path: Path) -> None:
    order = dataclasses.replace(models.order(tmp_path, models.perceptron()), settings={"turbo": True})
    with pytest.raises(EngineError, match="no setting 'turbo'"):
        open_engine("onnx").load(order)
