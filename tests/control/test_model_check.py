"""What a model file needs is read in a process of its own; real files, real process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cache.manifest import Manifest
from serve.control.model_check import check_model
from serve.core.errors import FilesMissing, ModelInvalid
from tests.cache.harness import manifest_of


def save(path: Path, location: str | None) -> None:
    """Save y = x + w; w lies in the file `location` beside the model where that is given."""
    weights = numpy_helper.from_array(np.ones((1, 4), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weights],
    )
    if location is not None:
        tensor = graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "16")):
            tensor.external_data.add(key=key, value=value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


def manifest_in(folder: Path) -> Manifest:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return manifest_of({path.relative_to(folder).as_posix(): path.read_bytes() for path in files})


async def check(folder: Path, file: str = "model.onnx") -> None:
    await check_model(folder, file, "onnx", manifest_in(folder))


async def test_a_model_with_all_its_files_passes(tmp_path: Path) -> None:
    save(tmp_path / "sub" / "model.onnx", "weights.bin")
    (tmp_path / "sub" / "weights.bin").write_bytes(bytes(16))
    await check(tmp_path, "sub/model.onnx")


async def test_weights_that_were_not_sent_are_named_relative_to_the_folder(tmp_path: Path) -> None:
    save(tmp_path / "sub" / "model.onnx", "weights.bin")
    with pytest.raises(FilesMissing) as refusal:
        await check(tmp_path, "sub/model.onnx")
    assert refusal.value.details["files"] == ["sub/weights.bin"]


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd"])
async def test_weights_outside_the_folder_are_an_invalid_model(tmp_path: Path, location: str) -> None:
    save(tmp_path / "m" / "model.onnx", location)
    with pytest.raises(ModelInvalid, match="outside the model's folder"):
        await check(tmp_path / "m")


@pytest.mark.parametrize("content", [b"", b"this is no model", b"\x08\x07" * 500])
async def test_what_is_no_model_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ModelInvalid, match=r"model\.onnx"):
        await check(tmp_path)


async def test_a_truncated_model_is_invalid(tmp_path: Path) -> None:
    save(tmp_path / "model.onnx", None)
    whole = (tmp_path / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelInvalid, match="cut short"):
        await check(tmp_path)


def test_the_models_of_this_test_are_real(tmp_path: Path) -> None:
    save(tmp_path / "model.onnx", None)
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"))
