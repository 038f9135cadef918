"""The receipt of a publish: what was measured, what it costs, and a call to paste. Pure."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from billing.prices import Prices, round_half_even
from billing.records import mebibytes
from serve.core.clock import NS_PER_MS, NS_PER_US
from serve.core.events import Phase
from serve.core.frames import NO_JSON_LENGTH
from serve.core.revision import Revision

INLINE_BYTES = 1024
"""A longer body goes into a file beside the curl."""
_HOUR_US = 3_600_000_000
_NANO = Decimal(10) ** 9


@dataclass(frozen=True, slots=True)
class Measured:
    """What one candidate's inferences showed."""

    cold_total_ns: int
    """Start ordered until the first answer was there."""
    phases: Mapping[Phase, int]
    """Nanoseconds by phase, `infer` included."""
    warm_ns: Sequence[int]
    """Total time of each further inference; at least one."""

    @property
    def warm_p50_ns(self) -> float:
        return statistics.median(self.warm_ns)


def receipt(
    revision: Revision, size_bytes: int, endpoint: str, measured: Measured | None, prices: Prices, curl: str
) -> dict[str, Any]:
    """Return the receipt object of the API. `measured` None: the model was loaded, but no sample ran."""
    signature = revision.signature
    assert signature is not None, "a receipt is written for a model that was loaded"
    answer: dict[str, Any] = {
        "name": revision.key.name,
        "revision": revision.key.number,
        "endpoint": endpoint,
        "verified": measured is not None,
        "cold_start": None if measured is None else _cold_start(measured),
        "warm_ms": None if measured is None else {"p50": _ms(measured.warm_p50_ns), "n": len(measured.warm_ns)},
        "memory_bytes": revision.memory_bytes,
        "threads": revision.threads,
        "concurrency": revision.concurrency,
        "max_batch": revision.spec.max_batch if signature.batchable else 1,
        "cost": _cost(revision, measured, prices),
        "curl": curl,
        "inputs": [asdict(tensor) for tensor in signature.inputs],
        "outputs": [asdict(tensor) for tensor in signature.outputs],
        "idle_s": revision.spec.idle,
        "model": {"digest": revision.digest, "size_bytes": size_bytes},
    }
    if measured is None:
        answer["warning"] = (
            "the model was loaded, but answered no sample of zeros in any size that was tried; "
            "deploy again with --sample FILE, a valid request, to have it verified"
        )
    return answer


def curl_command(endpoint: str, body: bytes, json_length: int, file: str | None) -> str:
    """Return a command that calls the endpoint with `body`, which lies in `file` where that is given."""
    binary = json_length != NO_JSON_LENGTH
    content = "application/octet-stream" if binary else "application/json"
    words = ["curl", "-s", endpoint, "-H", f"content-type: {content}"]
    if binary:
        words += ["-H", f"inference-header-content-length: {json_length}"]
    if b'"binary_data_output":true' in body:
        words += ["--output", "-"]  # else curl refuses to show it
    words += ["--data-binary", f"@{file}" if file is not None else body.decode()]
    return shlex.join(words)


def amount(numerator: int) -> str:
    """Return a cost over `COST_DENOMINATOR` as a decimal string of whole currency, to the nano-unit."""
    text = format(Decimal(round_half_even(numerator)) / _NANO, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _cold_start(measured: Measured) -> dict[str, Any]:
    phases = {phase.value: _ms(measured.phases[phase]) for phase in Phase if phase in measured.phases}
    return {"total_ms": _ms(measured.cold_total_ns), "phases": phases}


def _cost(revision: Revision, measured: Measured | None, prices: Prices) -> dict[str, Any]:
    """Busy time charges granted cores and memory, an idle hour memory only, zero nothing (DESIGN §6)."""
    memory_mib = mebibytes(revision.memory_bytes)
    per_1000_calls = None
    if measured is not None:
        busy_us = round(1000 * measured.warm_p50_ns / NS_PER_US)
        per_1000_calls = amount(prices.cost_numerator(revision.threads * busy_us, memory_mib * busy_us, 1000))
    return {
        "currency": prices.currency,
        "per_1000_calls": per_1000_calls,
        "per_idle_hour": amount(prices.cost_numerator(0, memory_mib * _HOUR_US)),
        # With replicas kept without traffic it never comes to zero.
        "at_zero": None if revision.spec.min else "0",
    }


def _ms(duration_ns: float) -> float:
    return round(duration_ns / NS_PER_MS, 3)
