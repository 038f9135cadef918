"""Load with wrk, and what came of it."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.bodies import Body

_SCRIPT = Path(__file__).with_name("wrk.lua")
_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


class Round(NamedTuple):
    requests_per_s: float
    p50_ms: float
    p99_ms: float


def wrk(url: str, body: Body, concurrency: int, seconds: int) -> Round:
    """Run one round of load. Raise where a single request was not answered 200."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(body.data)
        file.flush()
        headers = "\n".join(f"{name}: {value}" for name, value in body.headers.items())
        environment = os.environ | {"BENCH_BODY": file.name, "BENCH_HEADERS": headers}
        command = ["wrk", "-t1", f"-c{concurrency}", f"-d{seconds}s", "--timeout", "10s", "--latency", "-s"]
        done = subprocess.run(
            [*command, str(_SCRIPT), url], env=environment, capture_output=True, text=True, check=True
        )
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise RuntimeError(f"not every request was answered:\n{done.stdout}")
    return parse(done.stdout)


def parse(printed: str) -> Round:
    rate = re.search(r"Requests/sec:\s+([0-9.]+)", printed)
    assert rate, printed
    return Round(float(rate[1]), _latency_ms(printed, 50), _latency_ms(printed, 99))


def _latency_ms(printed: str, percent: int) -> float:
    found = re.search(rf"\s{percent}%\s+([0-9.]+)(us|ms|s|m)\b", printed)
    assert found, printed
    return float(found[1]) * _UNITS_MS[found[2]]
