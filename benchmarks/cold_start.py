"""Cold starts over HTTP from proven zero, beside the floor. `python -m benchmarks.cold_start [--samples 30]`.

Before each sample no process of the deployment exists; the replica that answers has an id never seen and a pid that
was not there; a sample that cannot show this ends the run. Floor and platform alternate. Bound: p50 ≤ F + 40 ms.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass, field

from benchmarks import floor
from benchmarks.bodies import Body, binary_body, json_body
from benchmarks.models import Model, models
from benchmarks.running import NotAtZeroError, Platform, pids, platform, resting_processes
from benchmarks.table import machine, median, quantile, table

BOUND_MS = 40.0
IDLE = "1s"


@dataclass
class Samples:
    floor_ms: list[float] = field(default_factory=list)
    cold_ms: list[float] = field(default_factory=list)
    phases_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=30)
    count = parser.parse_args().samples
    measured: list[tuple[Model, Samples]] = []
    with platform() as running:
        resting = resting_processes(running)
        for model in models():
            running.deploy(model.path, model.name, "--idle", IDLE)
            measured.append((model, sample(running, model, resting, count)))
    print(f"{count} cold starts each, from proven zero. {machine()}\n")
    print(report(measured))


def sample(running: Platform, model: Model, resting: int, count: int) -> Samples:
    body = binary_body(model) if model.sample.size > 1000 else json_body(model)
    samples, seen = Samples(), set[str]()
    floor.cold_ms(model)  # the file is in the page cache for both from here on
    for _ in range(count):
        samples.floor_ms.append(floor.cold_ms(model))
        running.wait_for_zero(model.name, resting)
        answer_ms, phases = cold_call(running, model.name, body, seen)
        samples.cold_ms.append(answer_ms)
        for phase, phase_ms in phases.items():
            samples.phases_ms[phase].append(phase_ms)
    return samples


def cold_call(running: Platform, name: str, body: Body, seen: set[str]) -> tuple[float, dict[str, float]]:
    """Return ms and phases of one call, which was a cold start or raises NotAtZeroError."""
    before = pids()
    answer = running.infer(name, body)
    if answer.status != 200:
        raise RuntimeError(f"{name} answered {answer.status}: {answer.body!r}")
    replica = answer.headers["x-serve-replica"]
    alive = {found["id"]: found["pid"] for found in running.status(name)["replicas"]}
    if answer.headers["x-serve-cold-start"] != "1" or replica in seen or alive[replica] in before:
        raise NotAtZeroError(f"{replica} (pid {alive.get(replica)}) was there before the request")
    seen.add(replica)
    return answer.elapsed_ms, server_timing(answer.headers["server-timing"])


def server_timing(header: str) -> dict[str, float]:
    """Return {phase: ms} of a `server-timing` header."""
    entries = (entry.strip().partition(";dur=") for entry in header.split(","))
    return {phase: float(duration) for phase, _, duration in entries if duration}


def report(measured: list[tuple[Model, Samples]]) -> str:
    headers = ("model", "F p50", "F p95", "cold p50", "cold p95", "p50 - F", f"≤ {BOUND_MS:.0f} ms")
    rows, phases = [], []
    for model, found in measured:
        floor_ms, cold_ms = median(found.floor_ms), median(found.cold_ms)
        figures = (floor_ms, quantile(found.floor_ms, 0.95), cold_ms, quantile(found.cold_ms, 0.95), cold_ms - floor_ms)
        verdict = "yes" if cold_ms <= floor_ms + BOUND_MS else "NO"
        rows.append((model.name, *(f"{figure:.1f} ms" for figure in figures), verdict))
        each = (f"{phase} {median(values):.1f}" for phase, values in found.phases_ms.items())
        phases.append(f"- {model.name}, median ms by phase: {', '.join(each)}")
    return table(headers, rows) + "\n\n" + "\n".join(phases)


if __name__ == "__main__":
    main()
