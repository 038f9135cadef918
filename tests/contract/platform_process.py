"""A platform's process in small, for tests that kill it: opens a driver, starts replicas, says their pids, waits.

`python platform_process.py local|exec HOME COUNT`
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))

from autoscaler.drivers.base import Driver
from autoscaler.drivers.exec import ExecDriver
from autoscaler.drivers.local import LocalDriver
from tests.contract.replicas import Observer, scripted


async def main(kind: str, home: Path, count: int) -> None:
    driver: Driver = LocalDriver(home, flavour="bare") if kind == "local" else ExecDriver(home)
    await driver.open()
    pids: list[Any] = [driver.zygote_pid] if isinstance(driver, LocalDriver) else []
    for number in range(count):
        observer = Observer()
        order = scripted(home, f"echo-r1-{number:08d}")
        pids.append((await driver.start(order, observer, home / "replica.log")).pid)
        await observer.ready()
    print(*pids, flush=True)  # noqa: T201
    await asyncio.Event().wait()


asyncio.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
