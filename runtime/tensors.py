"""Tensors on the wire: the datatypes of the Open Inference Protocol, from JSON lists or raw bytes to NumPy and back.

A tensor of a request is kept as it came until its batch is built: fixed-width elements as little-endian bytes (a view
of the request where they were sent as binary), BYTES as a list. `join` then makes one array of all members of a batch.
BF16 has no NumPy type: its arrays are uint16, the high halves of FP32.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
RawTensor = bytes | memoryview | list[bytes]

MAX_DIM = 2**31 - 1


class Datatype(NamedTuple):
    name: str
    dtype: np.dtype[Any]
    """Of the arrays that engines see; object (of `bytes`) for BYTES."""
    code: str
    """Format of one element in `struct`; empty where JSON cannot carry the datatype."""
    size: int
    """Bytes of one element; 0 = variable."""


DATATYPES: dict[str, Datatype] = {
    name: Datatype(name, np.dtype(dtype), code, 0 if dtype == "O" else np.dtype(dtype).itemsize)
    for name, dtype, code in (
        ("BOOL", "?", "?"),
        ("UINT8", "u1", "B"),
        ("UINT16", "<u2", "H"),
        ("UINT32", "<u4", "I"),
        ("UINT64", "<u8", "Q"),
        ("INT8", "i1", "b"),
        ("INT16", "<i2", "h"),
        ("INT32", "<i4", "i"),
        ("INT64", "<i8", "q"),
        ("FP16", "<f2", ""),
        ("BF16", "<u2", ""),
        ("FP32", "<f4", "f"),
        ("FP64", "<f8", "d"),
        ("BYTES", "O", "s"),
    )
}


class RequestRejected(Exception):
    """One request cannot be answered as it is. `status` and `code` go into its answer; the text names the remedy."""

    def __init__(self, sentence: str, status: int = 400, code: str = "bad_request") -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code


def from_json(name: str, datatype: Datatype, shape: tuple[int, ...], data: Any, may_hold_bools: bool) -> RawTensor:
    """Return the elements of JSON `data`, nested like `shape` or flat, row-major. Raise RequestRejected.

    `may_hold_bools`: the text of the request has the word true or false in it. (Python takes True for 1; looking at
    every element would double the cost of a request.)
    """
    if not datatype.code:
        raise RequestRejected(
            f"input '{name}': JSON cannot carry {datatype.name}; send it as binary data ('binary_data_size')"
        )
    if type(data) is not list:
        if shape:
            raise RequestRejected(f"input '{name}': 'data' must be an array, not {said(data)}")
        data = [data]
    count = element_count(shape)
    if data and type(data[0]) is list:
        data = _flatten(name, shape, data)
    if len(data) != count:
        raise RequestRejected(
            f"Unable to parse 'data': Shape does not match true shape of 'data' field: input '{name}' has shape "
            f"{list(shape)}, which is {count} elements, but 'data' has {len(data)}"
        )
    if datatype.code == "s":
        return _encode_strings(name, data)
    if datatype.code == "?" or may_hold_bools:
        _check_bools(name, datatype, data)
    try:
        return packer(datatype.code, count)(*data)
    except (struct.error, OverflowError, TypeError, ValueError):
        raise RequestRejected(_wrong_element(name, datatype, data)) from None


def from_binary(name: str, datatype: Datatype, shape: tuple[int, ...], data: memoryview) -> RawTensor:
    """Return the elements in the raw bytes `data`: a view for fixed-width types. Raise RequestRejected."""
    count = element_count(shape)
    if datatype.size == 0:
        return _split_strings(name, data, count)
    expected = count * datatype.size
    if len(data) != expected:
        raise RequestRejected(
            f"input byte size mismatch for input '{name}': {datatype.name} of shape {list(shape)} is {expected} "
            f"bytes, got {len(data)}"
        )
    if datatype.code == "?" and count and (most := np.frombuffer(data, np.uint8).max()) > 1:
        raise RequestRejected(f"input '{name}': a BOOL is one byte, 0 or 1; got {most}")
    return data


def join(datatype: Datatype, parts: Sequence[RawTensor], shape: tuple[int, ...]) -> Array:
    """Return one array of `shape` with the elements of all parts, in order. Copies only where there are several."""
    if datatype.size == 0:
        return object_array(chain.from_iterable(parts), shape)  # type: ignore[arg-type]
    whole = parts[0] if len(parts) == 1 else b"".join(parts)  # type: ignore[arg-type]
    return np.frombuffer(whole, datatype.dtype).reshape(shape)  # type: ignore[arg-type]


def object_array(elements: Iterable[bytes], shape: tuple[int, ...]) -> Array:
    """Return an object array of byte strings."""
    items = list(elements)
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(shape)


def to_binary(array: Array) -> bytes | memoryview:
    """Return the raw bytes of an output, row-major; a view where the array allows."""
    if array.dtype.kind == "O":
        return b"".join(chain.from_iterable((_LENGTH.pack(len(item)), item) for item in map(as_bytes, array.flat)))
    if array.size == 0:
        return b""
    return np.ascontiguousarray(array).data.cast("B")


def as_bytes(element: Any) -> bytes:
    """Return one element of a BYTES output: engines may give str or bytes."""
    return element if type(element) is bytes else str(element).encode("utf-8", "surrogateescape")


def element_count(shape: tuple[int, ...]) -> int:
    """Return the product of the dims; Python's integers do not overflow."""
    if len(shape) == 2:
        return shape[0] * shape[1]
    count = 1
    for dim in shape:
        count *= dim
    return count


_LENGTH = struct.Struct("<I")


@functools.lru_cache(maxsize=256)
def packer(code: str, count: int) -> Callable[..., bytes]:
    """Return a function from `count` numbers to their bytes. It raises struct.error or OverflowError."""
    # Packing is three times faster than np.array(list), and strict: no strings for numbers, no silent truncation.
    return struct.Struct(f"<{count}{code}").pack


def _flatten(name: str, shape: tuple[int, ...], data: list[Any]) -> list[Any]:
    """Return the elements of nested lists, which must have exactly `shape`."""
    for depth in range(len(shape)):
        if len(data) != element_count(shape[: depth + 1]):
            break
        if depth == len(shape) - 1:
            return data
        inner = shape[depth + 1]
        if not all(type(item) is list and len(item) == inner for item in data):
            break
        data = list(chain.from_iterable(data))
    raise RequestRejected(
        f"Unable to parse 'data': Shape does not match true shape of 'data' field: input '{name}' has shape "
        f"{list(shape)}; nest 'data' like that, or send a flat array"
    )


def _encode_strings(name: str, data: list[Any]) -> list[bytes]:
    try:
        return [str.encode(item) for item in data]
    except (TypeError, UnicodeEncodeError):
        wrong = next((i for i, item in enumerate(data) if not isinstance(item, str)), None)
        if wrong is None:
            raise RequestRejected(
                f"input '{name}': a string holds a lone surrogate, which is not UTF-8; send BYTES as binary data"
            ) from None
        raise RequestRejected(
            f"input '{name}': element {wrong} is {said(data[wrong])}, but BYTES in JSON are strings"
        ) from None


def _split_strings(name: str, data: memoryview, count: int) -> list[bytes]:
    elements: list[bytes] = []
    position, size = 0, len(data)
    for _ in range(count):
        if position + 4 > size:
            raise RequestRejected(
                f"input '{name}': BYTES of {count} elements end after element {len(elements)}; "
                f"expecting {position + 4 - size} additional bytes for the length of the next"
            )
        (length,) = _LENGTH.unpack_from(data, position)
        position += 4
        if position + length > size:
            raise RequestRejected(
                f"input '{name}': BYTES element {len(elements)} says it has {length} bytes; "
                f"expecting {position + length - size} additional bytes"
            )
        elements.append(bytes(data[position : position + length]))
        position += length
    if position != size:
        raise RequestRejected(
            f"unexpected additional input data for input '{name}': {size - position} bytes after the last of {count} "
            "BYTES elements"
        )
    return elements


def _check_bools(name: str, datatype: Datatype, data: list[Any]) -> None:
    wants_bool = datatype.code == "?"
    for index, item in enumerate(data):
        if (type(item) is bool) != wants_bool:
            raise RequestRejected(_is_not(name, index, item, datatype))


def _wrong_element(name: str, datatype: Datatype, data: list[Any]) -> str:
    pack_one = packer(datatype.code, 1)
    for index, item in enumerate(data):
        try:
            pack_one(item)
        except (struct.error, OverflowError, TypeError, ValueError):
            return _is_not(name, index, item, datatype)
    return f"input '{name}': 'data' is not {datatype.name}"


def _is_not(name: str, index: int, item: Any, datatype: Datatype) -> str:
    if datatype.dtype.kind in "iu":
        info = np.iinfo(datatype.dtype)
        wanted = f"{datatype.name} is a whole number from {info.min} to {info.max}"
    elif datatype.code == "?":
        wanted = "BOOL is true or false"
    else:
        info_f = np.finfo(datatype.dtype)
        wanted = f"{datatype.name} is a number within ±{float(info_f.max):.4g}"
    return f"input '{name}': element {index} is {said(item)}, but {wanted}"


def said(item: Any) -> str:
    """Say a JSON value of the caller's, shortly. (Never its repr unseen: that of deep lists is an error itself.)"""
    if item is None or isinstance(item, bool):
        return {None: "null", True: "true", False: "false"}[item]
    if isinstance(item, list):
        return "an array"
    if isinstance(item, dict):
        return "an object"
    text = repr(item)
    return text if len(text) <= 40 else text[:37] + "..."
