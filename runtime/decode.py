"""From the body of an inference request to tensors ready for a batch (Open Inference Protocol, REST).

The texts of refusals keep the words that public clients and tests match.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from runtime import jsoncodec
from runtime.engines.base import Loaded
from runtime.tensors import (
    DATATYPES,
    MAX_DIM,
    Datatype,
    RawTensor,
    RequestRejected,
    element_count,
    from_binary,
    from_json,
)
from serve.core.events import TensorSpec
from serve.core.frames import NO_JSON_LENGTH, Codec

_MAX_WEIGHT = 2**31


class Wanted(NamedTuple):
    """One output of an answer."""

    output: int
    """Its place among the outputs of the model."""
    is_binary: bool


Signature = tuple[Any, ...]


class InferRequest:
    """A parsed request: what the batch, the engine and the answer need. Owned by the replica's main thread."""

    __slots__ = (
        "client_id",
        "deadline_ns",
        "entered_ns",
        "names",
        "parts",
        "request_id",
        "rows",
        "shapes",
        "signature",
        "stream",
        "ticket",
        "wanted",
        "weight",
    )

    def __init__(
        self,
        names: tuple[str, ...],
        parts: list[RawTensor],
        shapes: list[tuple[int, ...]],
        wanted: tuple[Wanted, ...],
        client_id: str | None,
    ) -> None:
        self.names = names
        """Of the inputs present, in the model's order; `parts` and `shapes` are parallel."""
        self.parts = parts
        self.shapes = shapes
        self.wanted = wanted
        self.client_id = client_id
        self.rows = 1
        """Length along the first dimension where the model is batchable, else 1."""
        self.weight = 1
        """Rows, at least 1: its part of the busy time."""
        self.signature: Signature | None = None
        """Requests of equal signature may share a run; None = runs alone."""
        # Set by the replica when the request enters:
        self.stream = 0
        self.request_id = ""
        self.entered_ns = 0
        self.deadline_ns = 0
        """Not started by then, it is refused; 0 = none."""
        self.ticket = 0
        """Of the meter."""


class RequestDecoder:
    """Decodes requests for one loaded model. Stateless but for small caches; main thread only."""

    def __init__(self, loaded: Loaded, model_name: str) -> None:
        self._model = model_name
        self._loaded = loaded
        self._batchable = loaded.batchable
        self._inputs = {spec.name: (spec, DATATYPES[spec.datatype]) for spec in loaded.inputs}
        self._order = tuple(self._inputs)
        self._outputs = {spec.name: index for index, spec in enumerate(loaded.outputs)}
        self._all_json = tuple(Wanted(output, False) for output in range(len(loaded.outputs)))
        self._all_binary = tuple(Wanted(output, True) for output in range(len(loaded.outputs)))
        self._needs_binary = [not DATATYPES[spec.datatype].code for spec in loaded.outputs]

    def decode(self, codec: int, json_length: int, body: memoryview) -> InferRequest:
        """Return the request in `body`. Raise RequestRejected."""
        if codec == Codec.OIP_RAW:
            return self._decode_raw(body)
        if codec != Codec.OIP:
            raise RequestRejected(f"codec {codec} is not known to this replica", 501, "unsupported")
        if json_length == NO_JSON_LENGTH:
            text, binary = bytes(body), None
        elif 0 <= json_length <= len(body):
            text, binary = bytes(body[:json_length]), body[json_length:]
        else:
            raise RequestRejected(
                f"inference header size should be in range (0, {len(body)}), got: {json_length} "
                "('Inference-Header-Content-Length' is the length of the JSON before the binary data)"
            )
        return self._decode_message(_parse(text), b"true" in text or b"false" in text, binary)

    def _decode_message(self, message: dict[str, Any], may_hold_bools: bool, binary: memoryview | None) -> InferRequest:
        items = message.get("inputs")
        if type(items) is not list:
            raise RequestRejected("the request must have 'inputs', an array of tensors")
        offset = 0
        found: dict[str, tuple[tuple[int, ...], RawTensor]] = {}
        for item in items:
            name, datatype, shape = self._check_input(item)
            if name in found:
                raise RequestRejected(f"input '{name}' already exists in request")
            size = _binary_size(name, item, binary is not None)
            if size is None:
                found[name] = shape, from_json(name, datatype, shape, item["data"], may_hold_bools)
                continue
            assert binary is not None
            if offset + size > len(binary):
                raise RequestRejected(
                    f"input '{name}': 'binary_data_size' is {size}; expecting {offset + size - len(binary)} "
                    "additional bytes after the JSON"
                )
            found[name] = shape, from_binary(name, datatype, shape, binary[offset : offset + size])
            offset += size
        if binary is not None and offset != len(binary):
            raise RequestRejected(
                f"unexpected additional input data: {len(binary) - offset} bytes after the last binary input"
            )
        client_id = message.get("id")
        if client_id is not None and type(client_id) is not str:
            raise RequestRejected("'id' must be a string")
        return self._finish(found, self._wanted(message), client_id)

    def _check_input(self, item: Any) -> tuple[str, Datatype, tuple[int, ...]]:
        """Return name, datatype and shape of one element of `inputs`, checked against the model."""
        if type(item) is not dict:
            raise RequestRejected("every element of 'inputs' must be an object with name, shape, datatype and data")
        name = item.get("name")
        known = self._inputs.get(name) if type(name) is str else None
        if known is None:
            raise RequestRejected(
                f"unexpected inference input '{name}' for model '{self._model}'; its inputs are {self._named()}"
            )
        spec, datatype = known
        said = item.get("datatype")
        if said != datatype.name:
            if said is None or said not in DATATYPES:
                raise RequestRejected(f"input '{name}': 'datatype' must be {datatype.name}, got {said!r:.40}")
            raise RequestRejected(
                f"inference input '{name}' data-type is '{said}', but model '{self._model}' expects '{datatype.name}'"
            )
        return spec.name, datatype, self._check_shape(spec, item.get("shape"))

    def _check_shape(self, spec: TensorSpec, dims: Any) -> tuple[int, ...]:
        if type(dims) is not list:
            raise RequestRejected(f"input '{spec.name}': 'shape' must be an array of whole numbers")
        for dim in dims:
            if type(dim) is not int or not 0 <= dim <= MAX_DIM:
                raise RequestRejected(
                    f"input '{spec.name}': every dim of 'shape' is a whole number from 0 to {MAX_DIM}, got {dim!r:.40}"
                )
        expected = spec.shape
        if len(dims) != len(expected):
            raise self._unexpected_shape(spec, dims)
        for dim, want in zip(dims, expected, strict=True):
            if want != dim and want != -1:
                raise self._unexpected_shape(spec, dims)
        return tuple(dims)

    def _unexpected_shape(self, spec: TensorSpec, dims: list[int]) -> RequestRejected:
        return RequestRejected(
            f"unexpected shape for input '{spec.name}' for model '{self._model}'. "
            f"Expected {list(spec.shape)}, got {dims}" + (" (-1 = any)" if -1 in spec.shape else "")
        )

    def _wanted(self, message: dict[str, Any]) -> tuple[Wanted, ...]:
        """Return the outputs to answer with. A named output is binary only if it says so itself."""
        items = message.get("outputs")
        if not items:
            if items is not None and type(items) is not list:
                raise RequestRejected("'outputs' must be an array")
            parameters = _parameters(message, "the request")
            wanted = self._all_binary if parameters.get("binary_data_output") is True else self._all_json
        else:
            wanted = self._named_outputs(items)
        for output, is_binary in wanted:
            if self._needs_binary[output] and not is_binary:
                spec = self._loaded.outputs[output]
                raise RequestRejected(
                    f"output '{spec.name}' is {spec.datatype}, which JSON cannot carry; "
                    "ask for it with the output parameter 'binary_data': true"
                )
        return wanted

    def _named_outputs(self, items: Any) -> tuple[Wanted, ...]:
        if type(items) is not list:
            raise RequestRejected("'outputs' must be an array")
        wanted: dict[int, Wanted] = {}
        for item in items:
            if type(item) is not dict:
                raise RequestRejected("every element of 'outputs' must be an object with a name")
            name = item.get("name")
            index = self._outputs.get(name) if type(name) is str else None
            if index is None:
                raise RequestRejected(
                    f"unexpected inference output '{name}' requested for model '{self._model}'; "
                    f"its outputs are {', '.join(self._outputs)}"
                )
            if index in wanted:
                raise RequestRejected(f"output '{name}' already exists in request")
            parameters = _parameters(item, f"output '{name}'")
            wanted[index] = Wanted(index, parameters.get("binary_data") is True)
        return tuple(wanted.values())

    def _decode_raw(self, body: memoryview) -> InferRequest:
        """The body is the one input's bytes: its shape follows from their number."""
        if len(self._inputs) != 1:
            raise RequestRejected(
                "Raw request must only have 1 input (found 1) to be deduced but got "
                f"{len(self._inputs)} inputs in '{self._model}' model configuration"
            )
        ((name, (spec, datatype)),) = self._inputs.items()
        dims = list(spec.shape)
        if self._batchable and dims:
            dims[0] = 1
        if dims.count(-1) > 1:
            raise RequestRejected(
                f"The shape of the raw input '{name}' can not be deduced because there are more than one "
                "variable-sized dimension"
            )
        part: RawTensor
        if datatype.size == 0:
            if element_count(tuple(dims)) != 1:
                raise RequestRejected(
                    f"For BYTE datatype raw input '{name}', the model must have input shape [1], not {dims}"
                )
            part = [bytes(body)]
        else:
            if -1 in dims:
                row = datatype.size * -element_count(tuple(dims))
                dims[dims.index(-1)] = len(body) // row if row else 0
            part = from_binary(name, datatype, tuple(dims), body)
        return self._finish({name: (tuple(dims), part)}, self._all_binary, None)

    def _finish(
        self,
        found: dict[str, tuple[tuple[int, ...], RawTensor]],
        wanted: tuple[Wanted, ...],
        client_id: str | None,
    ) -> InferRequest:
        if len(found) == len(self._order):
            names = self._order
        else:
            names = tuple(name for name in self._order if name in found)
            self._check_missing(found)
        shapes = [found[name][0] for name in names]
        request = InferRequest(names, [found[name][1] for name in names], shapes, wanted, client_id)
        if self._batchable:
            rows = request.rows = shapes[0][0]
            request.weight = min(max(rows, 1), _MAX_WEIGHT)
            if len(shapes) == 1 or all(shape[0] == rows for shape in shapes):
                chosen = tuple([output for output, _ in wanted])
                request.signature = (names, chosen, *[shape[1:] for shape in shapes])
        return request

    def _check_missing(self, found: dict[str, Any]) -> None:
        missing = [name for name in self._order if name not in found and name not in self._loaded.optional]
        if missing:
            raise RequestRejected(
                f"expected {len(self._order)} inputs but got {len(found)} inputs for model '{self._model}'. "
                f"Got inputs {list(found)}, but missing required inputs {missing}. "
                "Please provide all required inputs."
            )

    def _named(self) -> str:
        return ", ".join(f"'{name}' ({spec.datatype} {list(spec.shape)})" for name, (spec, _) in self._inputs.items())


def _parse(text: bytes) -> dict[str, Any]:
    try:
        message = jsoncodec.loads(text)
    except jsoncodec.JsonError as error:
        raise RequestRejected(f"failed to parse the request JSON: {error}") from None
    if type(message) is not dict:
        raise RequestRejected("the request must be a JSON object with 'inputs'")
    return message


def _binary_size(name: str, item: dict[str, Any], has_binary: bool) -> int | None:
    """Return the bytes that follow the JSON for this input; None where it carries its `data` itself."""
    parameters = item.get("parameters")
    size = None
    if parameters is not None:
        parameters = _parameters(item, f"input '{name}'")
        if "shared_memory_region" in parameters:
            raise RequestRejected(
                f"input '{name}': shared memory is not offered here; send 'data' or binary data", 501, "unsupported"
            )
        size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in item:
            raise RequestRejected(f"input '{name}' has no 'data' and no parameter 'binary_data_size'")
        return None
    if "data" in item:
        raise RequestRejected(f"input '{name}' has both 'data' and 'binary_data_size'; send one of them")
    if type(size) is not int or size < 0:
        raise RequestRejected(f"input '{name}': 'binary_data_size' must be a number of bytes, got {size!r:.40}")
    if not has_binary:
        raise RequestRejected(
            f"input '{name}' has 'binary_data_size' but the request has no header 'Inference-Header-Content-Length'"
        )
    return size


def _parameters(item: dict[str, Any], owner: str) -> dict[str, Any]:
    parameters = item.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise RequestRejected(f"'parameters' of {owner} must be an object")
    return parameters
