"""The ledger process: `python -P -m billing --journal DIR --ledger FILE`.

Obeys JSON lines on stdin: `{"op": "sync"}` takes in all the journal holds and answers `{"synced": n}`; what fails
answers `{"error": sentence}`. End of file takes in the rest and exits 0. It works only when told: no timer, no polling.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

import orjson

from billing.ledger import Ledger
from billing.schema import LedgerError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m billing", description="The ledger process.")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    arguments = parser.parse_args()
    # Ctrl-C reaches the whole foreground group; this process ends when the platform closes its stdin.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ledger = Ledger(arguments.ledger)
        for line in sys.stdin.buffer:
            sys.stdout.buffer.write(orjson.dumps(_answer(ledger, arguments.journal, line)) + b"\n")
            sys.stdout.buffer.flush()
        ledger.ingest(arguments.journal)
        ledger.close()
    except LedgerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except BrokenPipeError:
        return 1
    return 0


def _answer(ledger: Ledger, journal: Path, line: bytes) -> dict[str, Any]:
    try:
        order = orjson.loads(line)
        if not isinstance(order, dict) or order.get("op") != "sync":
            return {"error": 'the ledger process understands only {"op": "sync"}'}
        return {"synced": ledger.ingest(journal)}
    except orjson.JSONDecodeError as error:
        return {"error": f"not a JSON line: {error}"}
    except (LedgerError, OSError) as error:
        return {"error": str(error)}


if __name__ == "__main__":
    sys.exit(main())
