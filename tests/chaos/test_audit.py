"""The audit finds what must not be: each is put into a ledger or a log on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from billing.journal import Journal
from billing.ledger import Ledger
from billing.prices import Prices
from serve.core.clock import VirtualClock
from tests.chaos.audit import Audit, compare
from tests.chaos.clients import Attempt

PRICES = Prices(0, "USD", 24_000, 2_500, 0)
KILLED_NS = 1_000
RIGHT = Attempt("p0-1", "answered", 200, "w-1", "echo-r1-a", 24, 10, 20, "")
BROKEN = Attempt("p0-2", "broken", 0, "", "", 0, KILLED_NS - 1, KILLED_NS + 1, "")
REFUSED = Attempt("p0-3", "answered", 503, "w-3", "", 0, 10, 20, "")
WRONG = RIGHT._replace(problem="a wrong answer")
LEFT = Attempt("p0-4", "left", 0, "", "", 0, 10, 20, "")

Change = Callable[[list[Attempt], list[dict[str, Any]]], None]


def record(id: str, client_id: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": id, "client_id": client_id, "wall_ns": 1, "mono_ns": 1, "writer": "w", "deployment": "echo",
        "revision": 1, "replica": "echo-r1-a", "status": 200, "charged": True, "reason": None, "rows": 1,
        "batch_rows": 1, "queue_us": 0, "cold_us": 0, "busy_us": 1000, "infer_us": 0, "bytes_in": 0, "bytes_out": 0,
        "cores": 1, "memory_mib": 0, "cold": False, "price": PRICES.version, "trace_id": None,
    } | changes  # fmt: skip


def audited(folder: Path, change: Change) -> Audit:
    """Return what the audit says of a run in which all is right, but for `change`."""
    attempts = [RIGHT, BROKEN, REFUSED, LEFT]
    records = [record("w-1", "p0-1"), record("w-2", "p0-2"), record("w-4", "p0-4", status=499)]
    change(attempts, records)
    Journal(folder / "journal", "w", VirtualClock()).close()
    ledger = Ledger(folder / "ledger.db")
    for each in records:
        ledger._request(each)
    ledger.close()
    log = folder / "clients.tsv"
    log.write_text("".join("\t".join(map(str, attempt)) + "\n" for attempt in attempts))
    found = Audit()
    compare(found, folder / "ledger.db", [log], [KILLED_NS], [PRICES])
    return found


def test_a_run_in_which_all_is_right_has_no_problems(tmp_path: Path) -> None:
    found = audited(tmp_path, lambda _attempts, _records: None)
    assert found.problems == []
    assert (found.extras_at_kill, found.in_flight_at_kill) == ([1], [1])
    assert (found.counts["matched"], found.counts["recorded_499"], found.counts["refusals"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("is not in the ledger", lambda _, records: records.pop(0)),
        ("the answer said", lambda _, records: records[0].update(status=500)),
        ("the answer said", lambda _, records: records[0].update(busy_us=2000)),
        ("the answer said", lambda _, records: records[0].update(replica="echo-r1-b")),
        ("the answer said", lambda _, records: records[0].update(client_id="p0-4")),
        ("its attempt is None", lambda _, records: records.append(record("w-9", "stranger"))),
        ("is in the ledger 2 times", lambda _, records: records.append(record("w-9", "p0-2"))),
        ("only 1 requests were in flight", lambda _, records: records.append(record("w-9", "p0-2"))),
        ("its attempt is broken", lambda attempts, _: attempts.__setitem__(1, BROKEN._replace(end_ns=KILLED_NS - 1))),
        ("answers have the id w-1", lambda attempts, _: attempts.append(RIGHT._replace(client_id="p0-9"))),
        ("and charged", lambda _, records: records.append(record("w-3", "p0-3", status=503))),
        ("failed: a wrong answer", lambda attempts, _: attempts.__setitem__(0, WRONG)),
    ],
)  # fmt: skip
def test_what_must_not_be_is_found(tmp_path: Path, what: str, change: Change) -> None:
    found = audited(tmp_path, change)
    assert any(what in problem for problem in found.problems), found.problems
