"""The contract of an engine: the adapter between a replica and one inference library.

Engines see NumPy arrays by name and nothing of frames, JSON or batches.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from runtime.tensors import DATATYPES, Array
from serve.core.events import LoadOrder, TensorSpec

__all__ = [
    "DATATYPES",
    "Array",
    "Engine",
    "EngineError",
    "EngineMissing",
    "FilesMissing",
    "InputRejected",
    "LoadOrder",
    "Loaded",
    "ModelInvalid",
    "ModelUnsupported",
    "OutOfMemory",
    "TensorSpec",
    "open_engine",
]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an engine says of the model it holds."""

    platform: str
    """The protocol's platform string, such as `onnxruntime_onnx`."""
    version: str
    """Of the engine's library."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batchable: bool
    """Rows of several requests may be joined along the first dimension of every input."""
    mapped_ns: int
    """Monotonic: the model's bytes were at hand and the session began to be built."""
    optional: frozenset[str] = field(default=frozenset())
    """Inputs that a request may leave out."""


class Engine(Protocol):
    """One loaded model. Owned by the replica's main thread: `load` once, then `run` at will, `close` once."""

    def load(self, order: LoadOrder) -> Loaded:
        """Load the model. Raise EngineError with a sentence that names the remedy."""

    def run(self, inputs: dict[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Return the named outputs.

        Names, datatypes and shapes are those of `Loaded`, each -1 some size; inputs that are `optional` may be missing.
        Where the model is `batchable`, the first dimension of every input counts the rows of all requests of this run,
        and that of every output has to be as long. Input arrays may be read-only and unaligned.

        Raise InputRejected where the caller's values are at fault; any other exception is an execution failure.
        """

    def close(self) -> None: ...


class InputRejected(Exception):
    """The model cannot take these values: 400."""


class EngineError(Exception):
    """A model cannot be loaded. `code` is one of `events.Failed.code`."""

    code = "load_error"


class ModelInvalid(EngineError):
    code = "model_invalid"


class ModelUnsupported(EngineError):
    code = "model_unsupported"


class FilesMissing(EngineError):
    code = "model_files_missing"


class OutOfMemory(EngineError):
    code = "out_of_memory"


class EngineMissing(EngineError):
    code = "engine_missing"


_ENGINES = {
    "onnx": ("runtime.engines.onnx", "OnnxEngine", "onnxruntime"),
    "scripted": ("runtime.engines.scripted", "ScriptedEngine", ""),
}


def open_engine(name: str) -> Engine:
    """Return a new engine of that name; its library is imported now. Raise EngineMissing."""
    if name not in _ENGINES:
        raise EngineMissing(f"unknown engine '{name}'; known are {', '.join(sorted(_ENGINES))}")
    module, cls, library = _ENGINES[name]
    try:
        engine: Engine = getattr(importlib.import_module(module), cls)()
    except ImportError as error:
        raise EngineMissing(
            f"engine '{name}' needs the package {library}, which cannot be imported here ({error}); "
            f"install it into the environment of the runtime: pip install 'servezero[{name}]'"
        ) from error
    return engine
