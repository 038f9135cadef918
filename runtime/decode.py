"""From the body of an inference request to tensors ready for a batch (Open Inference Protocol, REST).

The usual request passes on a few lookups; whatever is unusual is examined with care and refused with a sentence. The
texts of refusals keep the words that public clients and tests match.
"""

from __future__ import annotations

import struct
from typing import Any

from runtime import jsoncodec
from runtime.engines.base import Loaded
from runtime.plans import CACHE_ENTRIES, NO_LAYOUT, InputPlan, Layout, Shape, Wanted, make_layout
from runtime.tensors import (
    DATATYPES,
    RawTensor,
    RequestRejected,
    element_count,
    from_binary,
    from_json,
    said,
)
from serve.core.frames import NO_JSON_LENGTH, Codec

_NO_PARTS: list[RawTensor] = []


class InferRequest:
    """A request inside the replica. Owned by the main thread.

    `parts`: values of the inputs, parallel to `layout.names`. The replica sets the last four: stream and head of its
    frame, the meter's ticket, times.
    """

    __slots__ = ("client_id", "deadline_ns", "entered_ns", "layout", "parts", "payload", "stream", "ticket")

    stream: int
    payload: memoryview
    """Of its frame, from which its id can be read."""
    entered_ns: int
    deadline_ns: int
    """Not started by then, it is refused; 0 = none."""
    ticket: int

    def __init__(
        self, layout: Layout = NO_LAYOUT, parts: list[RawTensor] = _NO_PARTS, client_id: str | None = None
    ) -> None:
        self.layout = layout
        self.parts = parts
        self.client_id = client_id


class RequestDecoder:
    """Decodes requests for one loaded model. Owned by the replica's main thread (its caches)."""

    def __init__(self, loaded: Loaded, model_name: str) -> None:
        self._model = model_name
        self._loaded = loaded
        self._plans = {spec.name: InputPlan(spec, place, model_name) for place, spec in enumerate(loaded.inputs)}
        self._outputs = {spec.name: place for place, spec in enumerate(loaded.outputs)}
        self._all_json = tuple(Wanted(place, False) for place in range(len(loaded.outputs)))
        self._all_binary = tuple(Wanted(place, True) for place in range(len(loaded.outputs)))
        self._binary_only = frozenset(
            place for place, spec in enumerate(loaded.outputs) if not DATATYPES[spec.datatype].code
        )
        self._layouts: dict[tuple[Any, ...], Layout] = {}

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
        # One letter is found ten times faster than a word, and most requests have neither.
        may_hold_bools = (b"r" in text and b"true" in text) or (b"f" in text and b"false" in text)
        return self._decode_message(_parse(text), binary, may_hold_bools)

    def _decode_message(self, message: dict[str, Any], binary: memoryview | None, may_hold_bools: bool) -> InferRequest:
        items = message.get("inputs")
        if type(items) is not list:
            raise RequestRejected("the request must have 'inputs', an array of tensors")
        dims: list[tuple[int, ...] | None] = [None] * len(self._plans)
        parts: list[RawTensor | None] = [None] * len(self._plans)
        offset = 0
        for item in items:
            plan, shape = self._identify(item, may_hold_bools)
            if dims[plan.place] is not None:
                raise RequestRejected(f"input '{plan.name}' already exists in request")
            dims[plan.place] = shape.dims
            if item.get("parameters") is None:
                parts[plan.place] = _values(plan, shape, item, may_hold_bools)
                continue
            size = _binary_size(plan.name, item, binary)
            if size is None:
                parts[plan.place] = _values(plan, shape, item, may_hold_bools)
                continue
            assert binary is not None
            data = binary[offset : offset + size]
            if len(data) < size:
                raise RequestRejected(
                    f"input '{plan.name}': 'binary_data_size' is {size}; expecting {size - len(data)} additional "
                    "bytes after the JSON"
                )
            offset += size
            parts[plan.place] = data if size == shape.size else from_binary(plan.name, plan.datatype, shape.dims, data)
        if binary is not None and offset != len(binary):
            raise RequestRejected(
                f"unexpected additional input data: {len(binary) - offset} bytes after the last binary input"
            )
        client_id = message.get("id")
        if client_id is not None and type(client_id) is not str:
            raise RequestRejected("'id' must be a string")
        layout = self._layout(tuple(dims), self._wanted(message))
        return InferRequest(layout, [part for part in parts if part is not None], client_id)

    def _identify(self, item: Any, may_hold_bools: bool) -> tuple[InputPlan, Shape]:
        """Return which input an element of `inputs` is, and its shape."""
        try:
            plan = self._plans[item["name"]]
            dims = item["shape"]
            shape = plan.known[tuple(dims)]
            # True finds 1 in a dict, but is no dim.
            if item["datatype"] == plan.datatype.name and not (may_hold_bools and bool in map(type, dims)):
                return plan, shape
        except (KeyError, TypeError):
            pass
        if type(item) is not dict:
            raise RequestRejected("every element of 'inputs' must be an object with name, shape, datatype and data")
        name = item.get("name")
        if type(name) is not str or name not in self._plans:
            raise RequestRejected(
                f"unexpected inference input '{_name(name)}' for model '{self._model}'; its inputs are "
                + ", ".join(f"'{spec.name}' ({spec.datatype} {list(spec.shape)})" for spec in self._loaded.inputs)
            )
        plan = self._plans[name]
        plan.check_datatype(item.get("datatype"))
        return plan, plan.check_shape(item.get("shape"))

    def _wanted(self, message: dict[str, Any]) -> tuple[Wanted, ...]:
        """Return the outputs to answer with. An output that is named is binary only if it says so itself."""
        items = message.get("outputs")
        if items:
            wanted = self._named_outputs(items)
        elif message.get("parameters") is None:
            wanted = self._all_json
        else:
            is_binary = _parameters(message, "the request").get("binary_data_output") is True
            wanted = self._all_binary if is_binary else self._all_json
        if self._binary_only:
            for output, is_binary in wanted:
                if output in self._binary_only and not is_binary:
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
            name = item.get("name") if type(item) is dict else None
            output = self._outputs.get(name) if type(name) is str else None
            if output is None:
                raise RequestRejected(
                    f"unexpected inference output '{_name(name)}' requested for model '{self._model}'; "
                    f"its outputs are {', '.join(self._outputs)}"
                )
            if output in wanted:
                raise RequestRejected(f"output '{name}' already exists in request")
            wanted[output] = Wanted(output, _parameters(item, f"output '{name}'").get("binary_data") is True)
        return tuple(wanted.values())

    def _layout(self, dims: tuple[tuple[int, ...] | None, ...], wanted: tuple[Wanted, ...]) -> Layout:
        """Return the layout of a request. `dims`: in the model's order, None for inputs that are not there."""
        layout = self._layouts.get((dims, wanted))
        if layout is None:
            names = tuple(spec.name for spec, there in zip(self._loaded.inputs, dims, strict=True) if there is not None)
            if len(names) < len(dims):
                self._check_missing(names)
            shapes = tuple(there for there in dims if there is not None)
            layout = make_layout(names, shapes, wanted, self._loaded.batchable)
            if len(self._layouts) >= CACHE_ENTRIES:
                self._layouts.clear()
            self._layouts[dims, wanted] = layout
        return layout

    def _check_missing(self, names: tuple[str, ...]) -> None:
        missing = [name for name in self._plans if name not in names and name not in self._loaded.optional]
        if missing:
            raise RequestRejected(
                f"expected {len(self._plans)} inputs but got {len(names)} inputs for model '{self._model}'. "
                f"Got inputs {list(names)}, but missing required inputs {missing}. Please provide all required inputs."
            )

    def _decode_raw(self, body: memoryview) -> InferRequest:
        """The body is the one input's bytes: its shape follows from their number."""
        if len(self._plans) != 1:
            raise RequestRejected(
                "Raw request must only have 1 input (found 1) to be deduced but got "
                f"{len(self._plans)} inputs in '{self._model}' model configuration"
            )
        (plan,) = self._plans.values()
        name, datatype = plan.name, plan.datatype
        dims = list(plan.spec.shape)
        if self._loaded.batchable:
            dims[0] = 1
        if dims.count(-1) > 1:
            raise RequestRejected(
                f"The shape of the raw input '{name}' can not be deduced because there are more than one "
                "variable-sized dimension"
            )
        if datatype.size == 0:
            if -1 in dims or element_count(tuple(dims)) != 1:
                raise RequestRejected(
                    f"For BYTE datatype raw input '{name}', the model must have input shape [1], not {dims}"
                )
            return InferRequest(self._layout((tuple(dims),), self._all_binary), [[bytes(body)]])
        if -1 in dims:
            one = datatype.size * -element_count(tuple(dims))
            dims[dims.index(-1)] = len(body) // one if one else 0
        shape = tuple(dims)
        return InferRequest(self._layout((shape,), self._all_binary), [from_binary(name, datatype, shape, body)])


def _values(plan: InputPlan, shape: Shape, item: dict[str, Any], may_hold_bools: bool) -> RawTensor:
    """Return the values of an input that carries its `data` itself."""
    if "data" not in item:
        raise RequestRejected(f"input '{plan.name}' has no 'data' and no parameter 'binary_data_size'")
    data = item["data"]
    if shape.pack is not None and not may_hold_bools and type(data) is list and len(data) == shape.elements:
        try:
            return shape.pack(*data)
        except (struct.error, OverflowError):
            pass  # nested, or wrong
    return from_json(plan.name, plan.datatype, shape.dims, data, may_hold_bools)


def _parse(text: bytes) -> dict[str, Any]:
    try:
        message = jsoncodec.loads(text)
    except jsoncodec.JsonError as error:
        raise RequestRejected(f"failed to parse the request JSON: {error}") from None
    if type(message) is not dict:
        raise RequestRejected("the request must be a JSON object with 'inputs'")
    return message


def _binary_size(name: str, item: dict[str, Any], binary: memoryview | None) -> int | None:
    """Return the bytes that follow the JSON for this input; None where it carries its `data` itself."""
    parameters = _parameters(item, f"input '{name}'")
    if "shared_memory_region" in parameters:
        raise RequestRejected(
            f"input '{name}': shared memory is not offered here; send 'data' or binary data", 501, "unsupported"
        )
    size: Any = parameters.get("binary_data_size")
    if size is None:
        return None
    if "data" in item:
        raise RequestRejected(f"input '{name}' has both 'data' and 'binary_data_size'; send one of them")
    if type(size) is not int or size < 0:
        raise RequestRejected(f"input '{name}': 'binary_data_size' must be a number of bytes, got {said(size)}")
    if binary is None:
        raise RequestRejected(
            f"input '{name}' has 'binary_data_size' but the request has no header 'Inference-Header-Content-Length'"
        )
    return size


def _name(name: Any) -> str:
    return name[:100] if type(name) is str else said(name)


def _parameters(item: dict[str, Any], owner: str) -> dict[str, Any]:
    parameters = item.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise RequestRejected(f"'parameters' of {owner} must be an object")
    return parameters
