"""The look into an ONNX file before it is stored, in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.engines import onnx_files
from tests.runtime import models
from tests.runtime.models import value


def inspect(folder: Path, file: str = "model.onnx") -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "runtime.engines.onnx_files", str(folder), file],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def external(name: str, location: str) -> Any:
    """Return a tensor whose values lie in another file."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def write(folder: Path, *locations: str, file: str = "model.onnx") -> None:
    """Write a model that wants these files."""
    made = models.model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1])],
        [external(f"w{place}", location) for place, location in enumerate(locations)],
    )
    made.producer_name, made.producer_version = "pytorch", "2.9"
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(made.SerializeToString())


def test_a_model_in_one_file_needs_no_other(tmp_path: Path) -> None:
    write(tmp_path)
    assert inspect(tmp_path) == {"external": [], "error": None, "opset": 17, "producer": "pytorch 2.9"}


def test_files_with_weights_are_listed_once_and_from_the_folder(tmp_path: Path) -> None:
    write(tmp_path, "a.bin", "deep/b.bin", "a.bin", file="1/model.onnx")
    assert inspect(tmp_path, "1/model.onnx")["external"] == ["1/a.bin", "1/deep/b.bin"]


def test_weights_inside_nodes_and_functions_are_found_too(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=external("c", "inner.bin"))], "i", [], [value("c", 1, [4])]
    )
    made = models.model(
        [helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)],
        [value("x", TensorProto.BOOL, [1])],
        [value("y", TensorProto.FLOAT, [4])],
    )
    constant = helper.make_node("Constant", [], ["f"], value=external("f", "function.bin"))
    made.functions.append(helper.make_function("own", "f", [], ["f"], [constant], [helper.make_opsetid("", 17)]))
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    assert sorted(inspect(tmp_path)["external"]) == ["function.bin", "inner.bin"]


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "a/../../w.bin", "..", "a\\..\\w.bin", "link/w.bin"])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    write(folder, location)
    error = inspect(folder)["error"]
    assert error["code"] == "model_invalid"
    assert f"'{location}', which is outside the model's folder" in error["message"]


def test_weights_may_lie_above_the_model_but_within_the_folder(tmp_path: Path) -> None:
    write(tmp_path, "../shared/w.bin", file="1/model.onnx")
    assert inspect(tmp_path, "1/model.onnx")["external"] == ["shared/w.bin"]


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x08" * 40, onnx.helper.make_model(onnx.GraphProto()).SerializeToString()[:3]]
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    error = inspect(tmp_path)["error"]
    assert error["code"] == "model_invalid"
    assert "'model.onnx' is not an ONNX model, or it is cut short" in error["message"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert inspect(tmp_path)["error"] == {"code": "model_files_missing", "message": "there is no file 'model.onnx'"}


def test_without_the_onnx_package_the_remedy_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert onnx_files.main([str(tmp_path), "model.onnx"]) == 0
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "engine_missing"
    assert "pip install 'servezero[onnx]'" in error["message"]


def test_wrong_arguments_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert onnx_files.main([]) == 2
    assert "usage:" in capsys.readouterr().err
