"""Durations as people write them."""

from __future__ import annotations

import math

from pytimeparse2 import parse

MOST_CHARS = 64
MOST_S = 1e9


def parse_duration(text: str) -> float | None:
    """Return the seconds in `60`, `60s`, `5m`, `1h30m`, `1 day`; None where it is no duration, or above 30 years.

    The library's pattern takes time exponential in the white space it meets, so it gets little of it.
    """
    if len(text) > MOST_CHARS:
        return None
    try:
        seconds = parse(" ".join(text.split()))
        value = math.nan if seconds is None else float(seconds)
    except (ValueError, OverflowError, ArithmeticError):  # numbers beyond what Python makes of them
        return None
    return value if abs(value) <= MOST_S else None
