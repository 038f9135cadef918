"""The receipt of a deploy, for people: what was measured and what it costs."""

from __future__ import annotations

from typing import Any

from serve.cli.output import milliseconds, seconds, size


def receipt_text(receipt: dict[str, Any], *, unchanged: bool) -> str:
    """Return the receipt as lines of text. Keys the platform left out are left out; a warning is told on stderr."""
    name = receipt["name"]
    state = "unchanged" if unchanged else "deployed" if receipt.get("verified") else "loaded, not verified"
    lines = [f"{name} revision {receipt['revision']}: {state}", "", _row("endpoint", receipt["endpoint"])]
    lines += [_row(label, _tensors(receipt[key])) for label, key in _TENSORS if receipt.get(key)]
    lines += _cold_start(receipt.get("cold_start"))
    lines += _warm(receipt)
    lines += _cost(receipt)
    curl = str(receipt.get("curl") or "").strip()
    if curl:
        lines += ["", "call it", *(f"  {line}" for line in curl.splitlines())]
    lines += ["", "next", f"  serve status {name}", f"  serve logs {name} -f", "  serve bill"]
    return "\n".join(lines)


_TENSORS = (("inputs", "inputs"), ("outputs", "outputs"))
_WIDTH = 12


def _row(label: str, value: str) -> str:
    return f"{label:<{_WIDTH}} {value}"


def _tensors(specs: list[dict[str, Any]]) -> str:
    return ", ".join(f"{spec['name']} {spec['datatype']} {spec['shape']}" for spec in specs)


def _cold_start(cold_start: dict[str, Any] | None) -> list[str]:
    if not cold_start:
        return []
    phases = cold_start.get("phases") or {}
    shown = {phase: milliseconds(ms) for phase, ms in phases.items()}
    total = milliseconds(cold_start.get("total_ms"))
    width = max(len(text) for text in (*shown.values(), total))
    return [
        _row("cold start", f"{total:>{width}}"),
        *(_row(f"  {phase}", f"{text:>{width}}") for phase, text in shown.items()),
    ]


def _warm(receipt: dict[str, Any]) -> list[str]:
    lines = []
    warm = receipt.get("warm_ms")
    if warm and warm.get("p50") is not None:
        lines.append(_row("warm", f"{milliseconds(warm['p50'])} (median of {warm.get('n', '?')} calls)"))
    if receipt.get("memory_bytes"):
        lines.append(_row("memory", f"{size(receipt['memory_bytes'])} a replica"))
    limits = (("threads", "threads"), ("concurrency", "requests at once"), ("max_batch", "rows a batch"))
    known = [f"{label} {receipt[key]}" for key, label in limits if receipt.get(key) is not None]
    if known:
        lines.append(_row("replica", ", ".join(known)))
    return lines


def _cost(receipt: dict[str, Any]) -> list[str]:
    cost = receipt.get("cost")
    if not cost:
        return []
    currency = cost.get("currency", "")
    rows = (
        (cost.get("per_1000_calls"), "per 1000 calls"),
        (cost.get("per_idle_hour"), "per idle hour of a replica"),
        (cost.get("at_zero", "0"), f"at zero, {seconds(receipt.get('idle_s'))} after the last request"),
    )
    shown = [(str(amount), label) for amount, label in rows if amount is not None]
    width = max((len(amount) for amount, _ in shown), default=0)
    return [
        _row("cost" if index == 0 else "", f"{amount:<{width}} {currency} {label}")
        for index, (amount, label) in enumerate(shown)
    ]
