"""What an ONNX file needs besides itself: `python -P -m runtime.engines.onnx_files DIR FILE`.

Prints one line of JSON and exits 0::

    {"external": [paths relative to DIR], "error": {"code", "message"} | null, "opset": 17, "producer": "pytorch 2.4"}

A process of its own, thrown away afterwards: a hostile file meets only this process, and the `onnx` library is not
imported anywhere else. Weights are not read.
"""

from __future__ import annotations

import json
import posixpath
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.engines.base import EngineError, EngineMissing, FilesMissing, ModelInvalid


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        sys.stderr.write("usage: python -P -m runtime.engines.onnx_files DIR FILE\n")
        return 2
    found: dict[str, Any] = {"external": [], "error": None, "opset": None, "producer": ""}
    try:
        found |= inspect(Path(arguments[0]), arguments[1])
    except EngineError as error:
        found["error"] = {"code": error.code, "message": str(error)}
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


def inspect(folder: Path, file: str) -> dict[str, Any]:
    """Return what the model at `folder`/`file` needs and says of itself. Raise EngineError."""
    try:
        import onnx
    except ImportError as error:
        raise EngineMissing(
            "reading ONNX files needs the package onnx; install it: pip install 'servezero[onnx]'"
        ) from error
    try:
        model = onnx.load(folder / file, format="protobuf", load_external_data=False)
    except FileNotFoundError:
        raise FilesMissing(f"there is no file '{file}'") from None
    except Exception as error:
        raise ModelInvalid(
            f"'{file}' is not an ONNX model, or it is cut short; export or copy it again ({type(error).__name__})"
        ) from error
    if not model.HasField("graph") or not model.opset_import:
        raise ModelInvalid(f"'{file}' is not an ONNX model, or it is cut short: it holds no graph")
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    return {
        "external": _external(folder, file, model),
        "opset": opsets.get("", opsets.get("ai.onnx")),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
    }


def _external(folder: Path, file: str, model: Any) -> list[str]:
    """Return the files with weights, relative to `folder`; they lie relative to the model file."""
    base = posixpath.dirname(file)
    found: dict[str, None] = {}
    for tensor in _tensors(model):
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), None)
        if tensor.data_location != tensor.EXTERNAL:
            continue
        if not location:
            raise ModelInvalid(f"'{file}': tensor '{tensor.name}' is external data without a location")
        path = posixpath.normpath(posixpath.join(base, location))
        if posixpath.isabs(location) or path.startswith("../") or "\\" in location or not _is_inside(folder, path):
            raise ModelInvalid(
                f"'{file}' wants external data from '{location}', which is outside the model's folder; save the model "
                "with its weights beside it and deploy the folder"
            )
        found[path] = None
    return list(found)


def _is_inside(folder: Path, path: str) -> bool:
    """Links may lead out of the folder too."""
    return (folder / path).resolve().is_relative_to(folder.resolve())


def _tensors(model: Any) -> Iterator[Any]:
    """Yield every tensor of the model: of its graph, of the graphs inside nodes, and of its functions."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        for graph in graphs:
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
        attributes = [attribute for node in nodes for attribute in node.attribute]
        graphs, nodes = [], []
        for attribute in attributes:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            graphs += attribute.graphs


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
