"""The what-if process: `python -P -m simulator`. One question as JSON on stdin, its answer as JSON on stdout.

`{"error": sentence}` where there is none. It ends after `deadline_s` at the latest, or when its parent does, and leaves
the processor to those who serve.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import orjson

from billing.prices import PriceBook, Prices
from billing.schema import LedgerError
from runtime.parentage import Orphaned, die_with
from serve.core.ids import RevisionKey
from serve.core.spec import DeploymentSpec
from simulator.forecast.compare import Question, forecast
from simulator.forecast.recorded import NotRecorded
from simulator.forecast.replay import Site

_NICENESS = 10


def main() -> int:
    parent_pid = os.getppid()
    order = orjson.loads(sys.stdin.buffer.read())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.alarm(order["deadline_s"])
    try:
        die_with(parent_pid)
    except Orphaned:
        return 1
    os.nice(_NICENESS)
    logging.disable(logging.CRITICAL)  # of platforms on paper
    try:
        answer = forecast(_question(order))
    except (NotRecorded, LedgerError) as error:
        answer = {"error": str(error)}
    sys.stdout.buffer.write(orjson.dumps(answer))
    return 0


def _question(order: dict[str, Any]) -> Question:
    site = Site(order["memory_budget_bytes"], order["cores"], PriceBook(Prices(**entry) for entry in order["prices"]))
    return Question(
        ledger=Path(order["ledger"]),
        key=RevisionKey(order["name"], order["revision"]),
        now=DeploymentSpec.model_validate(order["now"]),
        changed=DeploymentSpec.model_validate(order["changed"]),
        threads=order["threads"],
        is_batchable=order["is_batchable"],
        since_ns=order["since_ns"],
        until_ns=order["until_ns"],
        site=site,
    )


if __name__ == "__main__":
    sys.exit(main())
