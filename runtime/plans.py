"""What a model expects of a request, prepared so that the usual one needs a few lookups."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from runtime.tensors import DATATYPES, MAX_DIM, RequestRejected, element_count, packer, said
from serve.core.events import TensorSpec

CACHE_ENTRIES = 256
"""Bound of each cache of shapes: a caller can send any number of them."""

MAX_WEIGHT = 2**31

MAX_EXTENT = 2**60
"""Largest product of an empty tensor's dims, zeros left out: NumPy multiplies them, too, and has 64 bits for it."""

_MOST_DIMS = 64
"""Shown of a shape."""


class Shape(NamedTuple):
    """A shape that fits an input."""

    dims: tuple[int, ...]
    elements: int
    size: int
    """Bytes of its binary form; -1 where that is variable or needs a look at every element."""
    pack: Callable[..., bytes] | None
    """Turns the elements of flat JSON data into bytes; None where they need a closer look."""


class InputPlan:
    """Checks one input of a model. Main thread only (its cache)."""

    __slots__ = ("datatype", "known", "model", "name", "place", "spec")

    def __init__(self, spec: TensorSpec, place: int, model: str) -> None:
        self.spec = spec
        self.name = spec.name
        self.place = place
        """Among the inputs of the model."""
        self.datatype = DATATYPES[spec.datatype]
        self.model = model
        self.known: dict[tuple[int, ...], Shape] = {}
        """Shapes seen before, by the dims that were sent. (1.0 finds 1: JSON does not tell them apart.)"""

    def check_datatype(self, value: Any) -> None:
        """Raise RequestRejected unless `value` is the input's datatype."""
        if value == self.datatype.name:
            return
        if not isinstance(value, str) or value not in DATATYPES:
            raise RequestRejected(f"input '{self.name}': 'datatype' must be '{self.datatype.name}', got {said(value)}")
        raise RequestRejected(
            f"inference input '{self.name}' data-type is '{value}', but model '{self.model}' expects "
            f"'{self.datatype.name}'"
        )

    def check_shape(self, dims: Any) -> Shape:
        """Return the shape if it fits the model. Raise RequestRejected."""
        if type(dims) is not list:
            raise RequestRejected(f"input '{self.name}': 'shape' must be an array of whole numbers")
        for dim in dims:
            is_whole = type(dim) is int or (type(dim) is float and dim.is_integer())
            if not is_whole or not 0 <= dim <= MAX_DIM:
                raise RequestRejected(
                    f"input '{self.name}': every dim of 'shape' is a whole number from 0 to {MAX_DIM}, got {said(dim)}"
                )
        expected = self.spec.shape
        if len(dims) != len(expected) or any(e not in (-1, dim) for dim, e in zip(dims, expected, strict=True)):
            raise RequestRejected(
                f"unexpected shape for input '{self.name}' for model '{self.model}'. "
                f"Expected {list(expected)}, got {_listed(dims)}" + (" (-1 = any)" if -1 in expected else "")
            )
        if 0 in dims and math.prod([dim or 1 for dim in dims]) > MAX_EXTENT:
            raise RequestRejected(f"input '{self.name}': no empty tensor can have the shape {dims}; send smaller dims")
        return self._remember(tuple(int(dim) for dim in dims))

    def _remember(self, dims: tuple[int, ...]) -> Shape:
        known = self.known.get(dims)
        if known is not None:
            return known
        code, elements = self.datatype.code, element_count(dims)
        is_plain = code not in ("?", "s") and self.datatype.size > 0
        shape = Shape(
            dims,
            elements,
            size=elements * self.datatype.size if is_plain else -1,
            # `struct` refuses what no memory could hold; nor could any data fit such a shape.
            pack=packer(code, elements) if is_plain and code and elements <= MAX_DIM else None,
        )
        if len(self.known) >= CACHE_ENTRIES:
            self.known.clear()
        self.known[dims] = shape
        return shape


def _listed(dims: list[Any]) -> str:
    return str(dims) if len(dims) <= _MOST_DIMS else f"{len(dims)} dims"


class Wanted(NamedTuple):
    """One output of an answer."""

    output: int
    """Its place among the outputs of the model."""
    is_binary: bool


class Layout(NamedTuple):
    """Everything of a request but its values: equal for most requests to a model, so it is made once."""

    names: tuple[str, ...]
    """Inputs present, in the model's order."""
    shapes: tuple[tuple[int, ...], ...]
    wanted: tuple[Wanted, ...]
    rows: int
    """Length along the first dimension where the model is batchable, else 1."""
    weight: int
    """Rows, at least 1: its part of the busy time."""
    signature: tuple[Any, ...] | None
    """Requests of equal signature may share a run; None = runs alone."""


NO_LAYOUT = Layout((), (), (), rows=1, weight=1, signature=None)
"""Of a request that could not be read."""


def make_layout(
    names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...], wanted: tuple[Wanted, ...], batchable: bool
) -> Layout:
    """Return the layout of a request with these inputs and outputs."""
    if not batchable or not shapes:
        return Layout(names, shapes, wanted, rows=1, weight=1, signature=None)
    rows = shapes[0][0]
    signature = None
    if all(dims[0] == rows for dims in shapes):
        signature = (names, tuple(dims[1:] for dims in shapes), tuple(output for output, _ in wanted))
    return Layout(names, shapes, wanted, rows, weight=min(max(rows, 1), MAX_WEIGHT), signature=signature)
