"""The contract of an engine, run against every engine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.engines.base import (
    DATATYPES,
    Engine,
    EngineError,
    EngineMissing,
    InputRejected,
    Loaded,
    LoadOrder,
    TensorSpec,
    open_engine,
)
from tests.runtime import models
from tests.runtime.echo import sample

pytestmark = pytest.mark.contract

Builder = Callable[[Path, str, list[int]], LoadOrder]


def onnx_identity(folder: Path, datatype: str, shape: list[int]) -> LoadOrder:
    symbols = ["batch", "other", "third"]
    dims: list[Any] = [symbols[place] if dim < 0 else dim for place, dim in enumerate(shape)]
    made = models.identity(datatype, dims, pairs=2)
    return models.order(folder, made)


def scripted_identity(folder: Path, datatype: str, shape: list[int]) -> LoadOrder:
    tensors = [{"input": f"x{i}", "output": f"y{i}", "datatype": datatype, "shape": shape} for i in range(2)]
    (folder / "model.json").write_text(json.dumps({"tensors": tensors}))
    return LoadOrder("m-r1-aaaaaaaa", "m", 1, str(folder), "model.json", "scripted")


@dataclass(frozen=True)
class Subject:
    """An engine under test: how to build a model whose outputs `y0`, `y1` answer its inputs `x0`, `x1`."""

    name: str
    identity: Builder
    datatypes: tuple[str, ...]


SUBJECTS = [
    Subject("onnx", onnx_identity, tuple(models.ONNX_TYPES)),
    Subject("scripted", scripted_identity, tuple(DATATYPES)),
]
EVERY_DATATYPE = [
    pytest.param(subject, datatype, id=f"{subject.name}-{datatype}")
    for subject in SUBJECTS
    for datatype in subject.datatypes
]


@pytest.fixture(name="subject", params=SUBJECTS, ids=lambda subject: subject.name)
def fixture_subject(request: pytest.FixtureRequest) -> Subject:
    subject: Subject = request.param
    return subject


@pytest.fixture(name="loader")
def fixture_loader(tmp_path: Path) -> Iterator[Callable[..., tuple[Engine, Loaded]]]:
    """Loads models, and closes them after the test."""
    engines: list[Engine] = []

    def load(subject: Subject, datatype: str = "FP32", shape: list[int] | None = None) -> tuple[Engine, Loaded]:
        order = subject.identity(tmp_path, datatype, [-1, 2] if shape is None else shape)
        engine = open_engine(order.engine)
        engines.append(engine)
        return engine, engine.load(order)

    yield load
    for engine in engines:
        engine.close()


def test_a_loaded_engine_says_what_it_holds(subject: Subject, loader: Any) -> None:
    before_ns = time.monotonic_ns()
    _, loaded = loader(subject)
    assert loaded.platform
    assert loaded.version
    assert loaded.inputs == (TensorSpec("x0", "FP32", (-1, 2)), TensorSpec("x1", "FP32", (-1, 2)))
    assert loaded.outputs == (TensorSpec("y0", "FP32", (-1, 2)), TensorSpec("y1", "FP32", (-1, 2)))
    assert before_ns <= loaded.mapped_ns <= time.monotonic_ns()
    assert loaded.optional == frozenset()


@pytest.mark.parametrize(("subject", "datatype"), EVERY_DATATYPE)
@pytest.mark.parametrize("shape", [(3, 2), (1, 2), (0, 2)])
def test_every_datatype_goes_through_unharmed(
    subject: Subject, datatype: str, shape: tuple[int, ...], loader: Any
) -> None:
    engine, loaded = loader(subject, datatype)
    assert loaded.inputs[0].datatype == loaded.outputs[0].datatype == datatype
    values = sample(datatype, shape)
    if datatype == "BYTES" and subject.name == "onnx":
        values[values == b"\xff"] = b"text only"
    results = engine.run({"x0": values, "x1": values}, ["y0"])
    assert list(results) == ["y0"]
    found = results["y0"]
    if datatype == "BYTES":
        texts = [item if isinstance(item, bytes) else item.encode() for item in found.flat]
        assert (texts, found.shape) == (list(values.flat), shape)
    else:
        assert found.dtype == DATATYPES[datatype].dtype
        np.testing.assert_array_equal(found, values)


def test_outputs_come_as_asked_for(subject: Subject, loader: Any) -> None:
    engine, _ = loader(subject)
    inputs = {f"x{i}": np.full((1, 2), i, np.float32) for i in range(2)}
    assert {name: array[0, 0] for name, array in engine.run(dict(inputs), ["y1", "y0"]).items()} == {"y0": 0, "y1": 1}
    assert list(engine.run(dict(inputs), ["y1"])) == ["y1"]


def test_a_scalar_goes_through(subject: Subject, loader: Any) -> None:
    engine, loaded = loader(subject, shape=[])
    assert (loaded.inputs[0].shape, loaded.batchable) == ((), False)
    value = np.float32(2.5)
    assert engine.run({"x0": np.array(value), "x1": np.array(value)}, ["y0"])["y0"] == value


def test_views_into_a_request_are_taken_as_they_lie(subject: Subject, loader: Any) -> None:
    engine, _ = loader(subject)
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    odd = np.frombuffer(b"\0" + values.tobytes(), np.float32, offset=1).reshape(3, 2)
    assert not odd.flags.aligned
    assert not odd.flags.writeable
    np.testing.assert_array_equal(engine.run({"x0": odd, "x1": odd}, ["y0"])["y0"], values)


def test_earlier_outputs_outlive_later_runs(subject: Subject, loader: Any) -> None:
    engine, _ = loader(subject)
    first = engine.run({name: np.ones((1, 2), np.float32) for name in ("x0", "x1")}, ["y0"])["y0"]
    engine.run({name: np.zeros((1, 2), np.float32) for name in ("x0", "x1")}, ["y0"])
    assert first.tolist() == [[1, 1]]


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 1000, b'{"nope": 1}', b"[]"])
def test_a_file_that_is_no_model_is_named_in_the_error(subject: Subject, content: bytes, tmp_path: Path) -> None:
    order = subject.identity(tmp_path, "FP32", [-1, 2])
    Path(order.model_dir, order.model_file).write_bytes(content)
    with pytest.raises(EngineError, match=order.model_file) as caught:
        open_engine(order.engine).load(order)
    assert caught.value.code == "model_invalid"


def test_a_missing_file_is_named_in_the_error(subject: Subject, tmp_path: Path) -> None:
    order = subject.identity(tmp_path, "FP32", [-1, 2])
    Path(order.model_dir, order.model_file).unlink()
    with pytest.raises(EngineError, match=order.model_file):
        open_engine(order.engine).load(order)


def test_closing_twice_is_harmless(subject: Subject, loader: Any) -> None:
    engine, _ = loader(subject)
    engine.close()
    engine.close()


def test_an_unknown_engine_is_refused_with_those_there_are() -> None:
    with pytest.raises(EngineMissing, match="unknown engine 'tpu'; known are onnx, scripted"):
        open_engine("tpu")


def test_an_engine_whose_library_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(__import__("sys").modules, "runtime.engines.onnx", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(EngineMissing, match=r"needs the package onnxruntime.*pip install 'servezero\[onnx\]'"):
        open_engine("onnx")


def test_values_that_the_model_cannot_take_are_the_callers_fault(tmp_path: Path) -> None:
    engine = open_engine("onnx")
    engine.load(models.order(tmp_path, models.identity("FP32", ["batch", 2])))
    with pytest.raises(InputRejected, match="Got invalid dimensions for input: x0"):
        engine.run({"x0": np.zeros((1, 3), np.float32)}, ["y0"])
