"""The ledger process: `python -P -m billing --journal DIR --ledger FILE`.

Obeys JSON lines on stdin: `{"op": "sync"}` takes in all the journal holds and answers `{"synced": n}`; `{"op":
"rebuild"}` does so from the beginning; what fails answers `{"error": sentence}`. End of file takes in the rest and
exits 0. It works only when told: no timer, no polling. A ledger that cannot be read is set aside and derived anew; one
that was deleted, or moved away, is derived anew, too.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

import orjson

from billing.ledger import Ledger, derived_anew
from billing.schema import LedgerError, LedgerUnreadable


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m billing", description="The ledger process.")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    arguments = parser.parse_args()
    # Ctrl-C reaches the whole foreground group; this process ends when the platform closes its stdin.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        desk = _Desk(arguments.journal, arguments.ledger)
        for line in sys.stdin.buffer:
            # Unbuffered: what nobody reads any more must not be tried again at exit.
            os.write(sys.stdout.fileno(), orjson.dumps(desk.answer(line)) + b"\n")
        desk.sync()
        desk.ledger.close()
    except LedgerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except BrokenPipeError:
        return 1
    return 0


class _Desk:
    """The ledger, and what can be asked of it."""

    def __init__(self, journal: Path, path: Path) -> None:
        self._journal = journal
        self._path = path
        try:
            self.ledger = Ledger(path)
        except LedgerUnreadable as error:
            self._derive_anew(str(error))

    def answer(self, line: bytes) -> dict[str, Any]:
        try:
            order = orjson.loads(line)
            wanted = order.get("op") if isinstance(order, dict) else None
            if wanted == "rebuild":
                self.ledger.close()
                self._derive_anew("a reader found the ledger damaged")
            elif wanted != "sync":
                return {"error": 'the ledger process understands only {"op": "sync"} and {"op": "rebuild"}'}
            return {"synced": self.sync()}
        except orjson.JSONDecodeError as error:
            return {"error": f"not a JSON line: {error}"}
        except (LedgerError, OSError) as error:
            return {"error": str(error)}

    def sync(self) -> int:
        """Take in what is new; return the number of records."""
        try:
            if not self.ledger.is_in_place():
                self.ledger.close()
                self.ledger = Ledger(self._path)
            return self.ledger.ingest(self._journal)
        except LedgerUnreadable as error:
            self.ledger.close()
            self._derive_anew(str(error))
            return self.ledger.ingest(self._journal)

    def _derive_anew(self, why: str) -> None:
        self.ledger = derived_anew(self._path)
        sys.stderr.write(f"{why}; it was set aside and is derived anew from the journal\n")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
