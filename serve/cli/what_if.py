"""What `serve explain --what-if` prints: recorded, simulated as it was, and what if, side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from serve.cli.output import emit, emit_table, from_nano, milliseconds, note

_COLUMNS = {"recorded": "RECORDED", "as_it_was": "AS IT WAS", "what_if": "WHAT IF"}


def show(answer: dict[str, Any]) -> None:
    """Print the table and the conclusion on stdout, doubts and footnotes on stderr."""
    currency = answer["currency"]
    changes = ", ".join(f"{key}: {_value(now)} → {_value(then)}" for key, (now, then) in answer["changes"].items())
    emit(f"{answer['name']} revision {answer['revision']}, {_span(answer['span_s'])}; {changes or 'nothing changes'}")
    emit("")
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("requests", lambda side: f"{side['requests']:,}"),
        ("refused", lambda side: "-" if side["refused"] is None else f"{side['refused']:,}"),
        ("cold-start rate", lambda side: f"{side['cold_rate'] * 100:.1f} %"),
        *((f"waiting {key}", _wait(key)) for key in ("p50", "p95", "p99")),
        (f"cost, {currency}", _cost("cost_nano")),
        *((f"  {part}", _cost(f"{part}_cost_nano")) for part in ("busy", "cold", "idle")),
        ("  fees", _cost("request_cost_nano")),
        ("cost per 1,000", _cost("per_1000_cost_nano")),
        ("replica-seconds", lambda side: f"{side['replica_us'] / 1e6:,.1f}"),
        ("starts", lambda side: f"{side['starts']:,}"),
    ]
    emit_table(
        ("FIGURE", *_COLUMNS.values()),
        ((label, *(cell(answer[side]) for side in _COLUMNS)) for label, cell in rows),
        right=(1, 2, 3),
    )
    emit("")
    emit(answer["conclusion"])
    if answer["weak"]:
        note(answer["weak"])
    for text in answer["notes"]:
        note(text)


def _wait(key: str) -> Callable[[dict[str, Any]], str]:
    def cell(side: dict[str, Any]) -> str:
        wait_us = side["wait_us"][key]
        return milliseconds(None if wait_us is None else wait_us / 1000)

    return cell


def _cost(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda side: from_nano(side[key])


def _value(value: Any) -> str:
    return "unset" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _span(span_s: float) -> str:
    """Return a length of time in the largest unit of which it has two."""
    for unit, length_s in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if span_s >= 2 * length_s:
            return f"{span_s / length_s:.1f} {unit}"
    return f"{span_s:.0f} seconds"
