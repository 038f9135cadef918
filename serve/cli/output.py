"""What people and programs see: data on stdout, narration on stderr, colour only on a terminal.

rich is imported where a table is drawn, so that `--json` and `--help` do not pay for it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

_GAP = 2
"""Spaces between two columns."""


def emit_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    emit(json.dumps(value, indent=2, ensure_ascii=False))


def emit(text: str) -> None:
    """Print data on stdout."""
    print(text, flush=True)  # noqa: T201


def note(text: str) -> None:
    """Print narration on stderr; nowhere where that is closed, for `print` would take stdout."""
    if sys.stderr is None:
        return
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def emit_table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = ()) -> None:
    """Print aligned columns on stdout. `right`: indices of columns that hold numbers, which are never broken.

    Nothing is cut where stdout is no terminal: the width of a pipe is not 80. Where the numbers do not fit side by
    side, each row is printed as a block of lines.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 10_000)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    numeric = set(right)
    cells = [tuple(row) for row in rows]
    least = 0
    for index, header in enumerate(headers):
        word = max(map(len, header.split()))
        number = max((len(row[index]) for row in cells), default=0) if index in numeric else 0
        least += max(word, number) + _GAP
        table.add_column(
            header,
            justify="right" if index in numeric else "left",
            overflow="fold",
            min_width=max(word, number),
            vertical="bottom",
        )
    if least - _GAP > console.width:
        emit("\n\n".join(_block(headers, row) for row in cells))
        return
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    with console.capture() as capture:
        console.print(table)
    emit("\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n")))


def _block(headers: Sequence[str], row: Sequence[str]) -> str:
    width = max(map(len, headers))
    return "\n".join(f"{header:<{width}}  {cell}" for header, cell in zip(headers, row, strict=True))


def milliseconds(value: float | None) -> str:
    """Return `0.42 ms`, `31.2 ms`, `1,204 ms`; `-` for None."""
    if value is None:
        return "-"
    digits = 2 if value < 10 else 1 if value < 1000 else 0
    return f"{value:,.{digits}f} ms"


def seconds(value: float | None) -> str:
    """Return `60 s` or `0.5 s`; `-` for None."""
    return "-" if value is None else f"{value:g} s"


def size(num_bytes: float | None) -> str:
    """Return `812 B`, `38.2 MiB`; `-` for None."""
    if num_bytes is None:
        return "-"
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def from_nano(nano: int) -> str:
    """Return an integer count of billionths as an exact decimal: 24_000 → `0.000024`."""
    sign = "-" if nano < 0 else ""
    whole, part = divmod(abs(nano), 1_000_000_000)
    decimals = f"{part:09d}".rstrip("0")
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"


def moment(value: str | None) -> str:
    """Return an ISO 8601 time in this machine's time zone, to the second; `-` for None."""
    if not value:
        return "-"
    try:
        return datetime.fromisoformat(value).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return value
