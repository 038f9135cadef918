"""JSON in and out: orjson where it can be imported, the standard library where not.

orjson is an order of magnitude faster, but a replica may live in a user's environment that lacks it. Both accept and
write the tokens NaN, Infinity and -Infinity, which JSON lacks and the Open Inference Protocol's servers use.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt

orjson: Any
try:
    orjson = importlib.import_module("orjson")
except ImportError:  # a user's own environment
    orjson = None


class JsonError(ValueError):
    """The bytes are no JSON. The text says where and why."""


def loads(data: bytes) -> Any:
    """Parse JSON; NaN and Infinity tokens are numbers. Raise JsonError."""
    if orjson is not None:
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as error:
            if "depth" in str(error):
                raise JsonError("nesting is too deep") from None
            # Not finite, or not JSON: the slow parser tells which.
    return _loads_slowly(data)


def dumps(value: Any) -> bytes:
    """Write a JSON value made of dicts, lists, strings and finite numbers."""
    if orjson is not None:
        text: bytes = orjson.dumps(value)
        return text
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def dumps_rows(rows: npt.NDArray[Any]) -> list[bytes]:
    """Return the comma-separated elements of each row of a 2-d array of bools or numbers, without brackets.

    One pass over the whole batch: writing 32 rows and cutting them apart costs a tenth of 32 calls.
    """
    count = len(rows)
    if count == 0:
        return []
    if orjson is None:
        return json.dumps(rows.tolist(), separators=(",", ":")).encode()[2:-2].split(b"],[")
    text = orjson.dumps(rows if rows.flags.c_contiguous else np.ascontiguousarray(rows), option=_NUMPY)
    if b"null" in text:
        text = _restore_non_finite(text, rows)
    return [text[2:-2]] if count == 1 else text[2:-2].split(b"],[")


_NUMPY = orjson.OPT_SERIALIZE_NUMPY if orjson is not None else 0


def _restore_non_finite(text: bytes, rows: npt.NDArray[Any]) -> bytes:
    """orjson writes null for what is not finite: put the tokens back, in order."""
    values = rows[~np.isfinite(rows)].tolist()
    pieces = text.split(b"null")
    joined = [pieces[0]]
    for value, piece in zip(values, pieces[1:], strict=True):
        joined += (b"NaN" if math.isnan(value) else b"Infinity" if value > 0 else b"-Infinity", piece)
    return b"".join(joined)


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _loads_slowly(data: bytes) -> Any:
    try:
        text = data.decode()
        value = json.loads(text, parse_float=_finite)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise JsonError("nesting is too deep") from None
    except UnicodeEncodeError:
        raise JsonError("a string holds a lone surrogate, which is no text") from None
    except UnicodeDecodeError as error:
        raise JsonError(f"it is not UTF-8: byte {error.start}") from None
    except ValueError as error:
        raise JsonError(str(error)) from None
    return value


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"number {text} does not fit into 64 bits")
    return value
