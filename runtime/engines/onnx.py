"""ONNX Runtime on CPU. Importing this module imports the library and nothing else: no session exists before `load`.

(A session that was created before a fork crashes the child; the import itself is safe.)
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from runtime.engines.base import (
    Array,
    EngineError,
    FilesMissing,
    InputRejected,
    Loaded,
    LoadOrder,
    ModelInvalid,
    ModelUnsupported,
    OutOfMemory,
    TensorSpec,
)

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}

_LOG_FATAL = 4


class OnnxEngine:
    """One ONNX Runtime session. Owned by the replica's main thread."""

    def __init__(self) -> None:
        self._session: Any = None
        self._strings: tuple[str, ...] = ()

    def load(self, order: LoadOrder) -> Loaded:
        if order.settings:
            raise EngineError(f"engine 'onnx' has no setting '{min(order.settings)}'; leave engine_settings out")
        path = Path(order.model_dir, order.model_file)
        if not path.is_file():
            raise FilesMissing(f"there is no file '{order.model_file}' in the model's folder; deploy the model again")
        mapped_ns = time.monotonic_ns()
        try:
            self._session = ort.InferenceSession(str(path), _options(order), providers=["CPUExecutionProvider"])
        except MemoryError as error:
            raise OutOfMemory(_out_of_memory(order.model_file)) from error
        except Exception as error:
            raise load_failure(order.model_file, error) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        specs = tuple(_spec(arg, "input") for arg in inputs), tuple(_spec(arg, "output") for arg in outputs)
        self._strings = tuple(spec.name for spec in specs[0] if spec.datatype == "BYTES")
        return Loaded(
            platform="onnxruntime_onnx",
            version=ort.__version__,
            inputs=specs[0],
            outputs=specs[1],
            batchable=is_batchable([arg.shape for arg in inputs], [arg.shape for arg in outputs]),
            mapped_ns=mapped_ns,
        )

    def run(self, inputs: dict[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        for name in self._strings:
            inputs[name] = _as_text(name, inputs[name])
        for name, array in inputs.items():
            if not array.flags.aligned:  # a view into a binary request; kernels may assume alignment
                inputs[name] = array.copy()
        try:
            return dict(zip(outputs, self._session.run(outputs, inputs), strict=True))
        except ort_errors.InvalidArgument as error:
            raise InputRejected(_plain(error)) from error
        except (ort_errors.Fail, ort_errors.RuntimeException) as error:
            # Its class does not say whose fault it is. Sizes that do not fit together are the caller's: those that the
            # model fixes were checked before.
            if _ABOUT_SIZES.search(str(error)):
                raise InputRejected(f"the sizes of the inputs do not fit this model: {_plain(error)}") from error
            raise

    def close(self) -> None:
        self._session = None


_ABOUT_SIZES = re.compile(r"dimension|shape|broadcast|axis", re.IGNORECASE)


def is_batchable(inputs: list[list[int | str | None]], outputs: list[list[int | str | None]]) -> bool:
    """Return whether rows may be joined: every first dimension is variable, and it is the same one everywhere.

    Dims are as ONNX Runtime gives them: a size, a symbol, or None. A symbol that comes back in another place (a
    matrix of rows × rows), or two symbols for two inputs, mean that rows of several requests would mix.
    """
    shapes = inputs + outputs
    if not inputs or any(not shape or isinstance(shape[0], int) for shape in shapes):
        return False
    symbols = {shape[0] for shape in inputs}
    if len(symbols) != 1:
        return False
    (symbol,) = symbols
    if symbol is None:
        return True
    if any(symbol in shape[1:] for shape in shapes):
        return False
    return all(shape[0] == symbol or shape[0] is None or str(shape[0]).startswith("unk__") for shape in outputs)


def load_failure(model_file: str, error: Exception) -> EngineError:
    """Return what an exception of session creation means, as a sentence with its remedy."""
    text = _plain(error)
    if "bad_alloc" in text or "Failed to allocate memory" in text:
        return OutOfMemory(_out_of_memory(model_file))
    if "xternal data" in text or isinstance(error, ort_errors.NoSuchFile):
        return FilesMissing(f"'{model_file}' needs external data that is not there: {text}. Deploy the whole folder")
    if missing := re.search(r"No Op registered for (\S+) with domain_version of (\d+)", text):
        return ModelUnsupported(
            f"'{model_file}' uses the operator {missing[1]} (opset {missing[2]}), which ONNX Runtime {ort.__version__} "
            "does not have; export the model with standard operators"
        )
    if missing := re.search(r"(\S+?)\(-?\d+\) is not a registered function/op", text):
        return ModelUnsupported(
            f"'{model_file}' uses the operator {missing[1]}, which ONNX Runtime {ort.__version__} does not have; "
            "export the model without custom operators"
        )
    if "guarantees" in text and (opset := re.search(r"Opset (\d+) is .*?till opset (\d+)", text)):
        return ModelUnsupported(
            f"'{model_file}' has opset {opset[1]}, ONNX Runtime {ort.__version__} supports up to {opset[2]}; "
            f"export it with opset {opset[2]} or lower"
        )
    if "Unsupported model IR version" in text:
        return ModelUnsupported(
            f"'{model_file}' is of a newer ONNX format: {text}; export it with an older onnx package"
        )
    if isinstance(error, ort_errors.NotImplemented):
        return ModelUnsupported(f"ONNX Runtime {ort.__version__} cannot run '{model_file}': {text}")
    if isinstance(error, ort_errors.InvalidProtobuf) or "No graph was found" in text:
        return ModelInvalid(
            f"'{model_file}' is not an ONNX model, or it is cut short; export or copy it again and deploy it anew"
        )
    if isinstance(error, ort_errors.InvalidGraph):
        return ModelInvalid(f"'{model_file}' is not a valid ONNX model: {text}")
    return EngineError(f"ONNX Runtime {ort.__version__} cannot load '{model_file}': {text}")


def _options(order: LoadOrder) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = order.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Batches vary in rows, and a memory pattern is kept for every shape ever seen.
    options.enable_mem_pattern = False
    options.log_severity_level = _LOG_FATAL  # exceptions carry the text
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _spec(arg: Any, role: str) -> TensorSpec:
    datatype = _DATATYPES.get(arg.type)
    if datatype is None:
        hint = "; export it with the option zipmap=False" if "map(" in arg.type else ""
        raise ModelUnsupported(f"{role} '{arg.name}' is a {arg.type}, which cannot be served yet{hint}")
    return TensorSpec(arg.name, datatype, tuple(dim if isinstance(dim, int) else -1 for dim in arg.shape))


def _as_text(name: str, array: Array) -> Array:
    """ONNX strings are text: bytes objects would arrive as their Python repr."""
    try:
        texts = [element.decode() for element in array.flat]
    except UnicodeDecodeError:
        raise InputRejected(f"input '{name}' holds bytes that are not UTF-8; strings of ONNX models must be") from None
    decoded = np.empty(len(texts), dtype=object)
    decoded[:] = texts
    return decoded.reshape(array.shape)


def _out_of_memory(model_file: str) -> str:
    return f"'{model_file}' does not fit into the memory of this machine; give the replica more, or a smaller model"


def _plain(error: Exception) -> str:
    """Return the text of an ONNX Runtime exception without its prefix and source positions."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    text = re.sub(r"/onnxruntime_src/\S+ [^:]*(?:::[^:]+)*\) ", "", text)
    return " ".join(text.split()).rstrip(".")
