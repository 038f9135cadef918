"""What starting a replica costs: from the driver's `start` until its own code runs, and until the model is ready.

`python -P -m benchmarks.spawn [--model examples/digits/model.onnx] [--starts 40] [--exec-starts 5]`

One replica at a time, from none. Printed in ms: median and 95th percentile. `returned`: `start` came back with the
process; `spawn`: the replica's code runs with its engine imported; `load`: the engine's session was built; `ready`: the
platform heard of it.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import uvloop

from autoscaler.drivers.base import Driver
from autoscaler.drivers.exec import ExecDriver
from autoscaler.drivers.local import LocalDriver
from serve.core.events import Event, Failed, LoadOrder, Phase, PhaseDone, Ready
from serve.core.ids import ReplicaId, RevisionKey, new_replica_id
from serve.core.scaling import Exited

COLUMNS = ("returned", "spawn", "load", "ready")


class Stopwatch:
    """Observes one replica."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.phases: dict[Phase, float] = {}
        self.ready: asyncio.Future[int] = loop.create_future()
        self.exited: asyncio.Future[Exited] = loop.create_future()

    def replica_event(self, replica_id: ReplicaId, event: Event) -> None:  # noqa: ARG002
        if isinstance(event, PhaseDone):
            self.phases[event.phase] = (event.end_ns - event.start_ns) / 1e6
        elif isinstance(event, Ready):
            self.ready.set_result(time.monotonic_ns())
        elif isinstance(event, Failed):
            self.ready.set_exception(RuntimeError(event.message))

    def replica_exited(self, exited: Exited) -> None:
        self.exited.set_result(exited)


async def measure(driver: Driver, model: Path, home: Path, starts: int) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {column: [] for column in COLUMNS}
    await driver.open()
    try:
        for _ in range(starts):
            watch = Stopwatch()
            key = RevisionKey("bench", 1)
            order = LoadOrder(new_replica_id(key), key.name, 1, str(model.parent), model.name, "onnx")
            start_ns = time.monotonic_ns()
            await driver.start(order, watch, home / "replica.log")
            returned_ns = time.monotonic_ns()
            ready_ns = await watch.ready
            figures["returned"].append((returned_ns - start_ns) / 1e6)
            figures["spawn"].append(watch.phases[Phase.SPAWN])
            figures["load"].append(watch.phases[Phase.LOAD])
            figures["ready"].append((ready_ns - start_ns) / 1e6)
            driver.drain(ReplicaId(order.replica_id))
            await watch.exited
    finally:
        await driver.close()
    return figures


def show(name: str, figures: dict[str, list[float]]) -> None:
    cells = []
    for column in COLUMNS:
        values = sorted(figures[column])
        p95 = values[min(len(values) - 1, round(0.95 * len(values)))]
        cells.append(f"{column} {statistics.median(values):7.2f} / {p95:7.2f}")
    print(f"{name:6} {' | '.join(cells)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("examples/digits/model.onnx"))
    parser.add_argument("--starts", type=int, default=40)
    parser.add_argument("--exec-starts", type=int, default=5)
    options = parser.parse_args()
    model = options.model.absolute()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        show("local", uvloop.run(measure(LocalDriver(home), model, home, options.starts)))
        show("exec", uvloop.run(measure(ExecDriver(home), model, home, options.exec_starts)))


if __name__ == "__main__":
    main()
