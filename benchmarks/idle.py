"""What 1,000 deployments at zero cost. `python -m benchmarks.idle [--deployments 1000] [--seconds 60]`.

Two platforms run side by side, one with a single deployment and one with all; both are watched at rest, then the same
warm call is measured on both in alternating rounds. Bounds: no process beside platform, ledger and zygote; under 1 % of
a core; under 200 MB together; a call costs the same.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from typing import NamedTuple

from benchmarks.bodies import json_body
from benchmarks.load import wrk
from benchmarks.models import Model, model
from benchmarks.running import Platform, platform, resting_processes
from benchmarks.table import machine, median, table

ROUNDS = 5
ROUND_S = 3
WARM_UP_S = 1
CONCURRENCY = 8
CPU_BOUND_PERCENT = 1.0
MEMORY_BOUND_BYTES = 200_000_000


class Rest(NamedTuple):
    deployments: int
    processes: int
    extra: int
    """Processes that were not there before anything was deployed."""
    cpu_percent: float
    pss_bytes: int
    rss_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deployments", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    tiny = model("tiny")
    with platform() as alone, platform() as crowded:
        rests = []
        for running, count in ((alone, 1), (crowded, options.deployments)):
            resting = resting_processes(running)
            deploy_all(running, tiny, count)
            running.wait_for_zero("tiny-0", resting)
            rests.append(rest(running, count, resting, options.seconds))
        rates = call_rates((alone, crowded), tiny)
    print(f"At rest for {options.seconds:g} s, then {ROUNDS} alternating rounds of {ROUND_S} s. {machine()}\n")
    print(report(rests, rates))


def deploy_all(running: Platform, tiny: Model, count: int) -> None:
    """Deploy `count` times in this process: a thousand commands would take a thousand starts of Python."""
    from serve.cli.main import app

    for number in range(count):
        arguments = ["deploy", str(tiny.path), "--name", f"tiny-{number}", "--idle", "1s", "--json"]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            app([*arguments, "--home", str(running.home)], standalone_mode=False)


def rest(running: Platform, count: int, resting: int, seconds: float) -> Rest:
    processes = running.processes()
    before_s = cpu_s(running)
    start_ns = time.monotonic_ns()
    time.sleep(seconds)
    elapsed_s = (time.monotonic_ns() - start_ns) / 1e9
    cpu_percent = 100 * (cpu_s(running) - before_s) / elapsed_s
    memory = [found.memory_full_info() for found in processes]
    pss_bytes, rss_bytes = sum(found.pss for found in memory), sum(found.rss for found in memory)
    return Rest(count, len(processes), len(processes) - resting, cpu_percent, pss_bytes, rss_bytes)


def cpu_s(running: Platform) -> float:
    times = [found.cpu_times() for found in running.processes()]
    return float(sum(found.user + found.system for found in times))


def call_rates(platforms: tuple[Platform, Platform], tiny: Model) -> tuple[list[float], list[float]]:
    body = json_body(tiny)
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for running, found in zip(platforms, rates, strict=True):
            url = f"{running.url}/v2/models/tiny-0/infer"
            wrk(url, body, CONCURRENCY, WARM_UP_S)  # it went to zero while the other was measured
            found.append(wrk(url, body, CONCURRENCY, ROUND_S).requests_per_s)
    return rates


def report(rests: list[Rest], rates: tuple[list[float], list[float]]) -> str:
    headers = ("deployments", "processes", "of them new", "CPU of a core", "memory (PSS)", "sum of RSS", "calls/s")
    rows = [
        (
            f"{found.deployments:,}",
            str(found.processes),
            str(found.extra),
            f"{found.cpu_percent:.2f} %",
            f"{found.pss_bytes / 1e6:.0f} MB",
            f"{found.rss_bytes / 1e6:.0f} MB",
            f"{median(found_rates):,.0f}",
        )
        for found, found_rates in zip(rests, rates, strict=True)
    ]
    crowded = rests[-1]
    ratio = median([many / one for one, many in zip(*rates, strict=True)])
    held = crowded.extra <= 0 and crowded.cpu_percent < CPU_BOUND_PERCENT and crowded.pss_bytes < MEMORY_BOUND_BYTES
    verdict = f"Bounds {'held' if held else 'NOT HELD'}. Calls a second with many, relative to one: {ratio:.2f}."
    return table(headers, rows) + f"\n\n{verdict}"


if __name__ == "__main__":
    main()
