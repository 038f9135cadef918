"""Requests a second of a warm tiny model, beside the floor. `python -m benchmarks.hot_path [--rounds 5] [--seconds 3]`.

Floor: one uvicorn process that runs the model itself. Rounds alternate between floor and platform, and the ratio is
that of neighbouring rounds, so that both see the same machine. Bounds: 0.95 at 32, 0.85 at 8, 0.45 at 1.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

from benchmarks import floor
from benchmarks.bodies import Body, binary_body, json_body
from benchmarks.load import Round, wrk
from benchmarks.models import model
from benchmarks.running import platform
from benchmarks.table import machine, median, table

BOUNDS = {1: 0.45, 8: 0.85, 32: 0.95}
WARM_UP_S = 1


class Cell(NamedTuple):
    encoding: str
    concurrency: int
    floor: list[Round]
    platform: list[Round]

    @property
    def ratio(self) -> float:
        pairs = zip(self.floor, self.platform, strict=True)
        return median([ours.requests_per_s / theirs.requests_per_s for theirs, ours in pairs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    options = parser.parse_args()
    tiny = model("tiny")
    bodies = {"JSON": json_body(tiny), "binary": binary_body(tiny)}
    with platform() as running, floor.hot_server(tiny) as floor_url:
        running.deploy(tiny.path, tiny.name, "--min", "1")
        url = f"{running.url}/v2/models/{tiny.name}/infer"
        cells = [
            measure(encoding, body, concurrency, (floor_url, url), options.rounds, options.seconds)
            for encoding, body in bodies.items()
            for concurrency in BOUNDS
        ]
    print(f"{options.rounds} alternating rounds of {options.seconds} s, medians. {machine()}\n")
    print(report(cells))


def measure(encoding: str, body: Body, concurrency: int, urls: tuple[str, str], rounds: int, seconds: int) -> Cell:
    cell = Cell(encoding, concurrency, [], [])
    for url in urls:
        wrk(url, body, concurrency, WARM_UP_S)
    for _ in range(rounds):
        for url, found in zip(urls, (cell.floor, cell.platform), strict=True):
            found.append(wrk(url, body, concurrency, seconds))
    return cell


def report(cells: list[Cell]) -> str:
    headers = ("encoding", "at once", "floor req/s", "platform req/s", "ratio", "bound", "held", "floor p99", "p99")
    rows = []
    for cell in cells:
        bound = BOUNDS[cell.concurrency]
        rates = [median([found.requests_per_s for found in side]) for side in (cell.floor, cell.platform)]
        p99s = [median([found.p99_ms for found in side]) for side in (cell.floor, cell.platform)]
        rows.append(
            (
                cell.encoding,
                str(cell.concurrency),
                *(f"{rate:,.0f}" for rate in rates),
                f"{cell.ratio:.2f}",
                f"{bound:.2f}",
                "yes" if cell.ratio >= bound else "NO",
                *(f"{p99:.2f} ms" for p99 in p99s),
            )
        )
    return table(headers, rows)


if __name__ == "__main__":
    main()
