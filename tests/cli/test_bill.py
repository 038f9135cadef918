"""The machine's part of the bill, and the kernel's figures beside it: sums to read, and what is to be looked at."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest

from serve.cli.bill import verify
from serve.cli.client import Client
from serve.cli.connect import Connection
from serve.control.schemas import ANSWERS
from tests.cli.conftest import Served
from tests.cli.fake_control import BILL, TOKEN

NAMES = ("deployments", "platform", "zygote", "pool", "cache", "unallocated", "overcommitted")


def machine(**changes: Any) -> dict[str, Any]:
    amounts = {"deployments": 3_000_000, "platform": 20_000, "unallocated": 5_000_000, "overcommitted": -20_000}
    lines = [
        {"line": name, "core_us": amounts.get(name, 0), "mib_us": 1_073_741_824 if name == "platform" else 0}
        | {"cost_nano": 1000 + number}
        for number, name in enumerate(NAMES)
    ]
    total = {"line": "total", "core_us": 8_000_000, "mib_us": 1_073_741_824, "cost_nano": 7021}
    plain = {"writer": "aaaaaaaa", "begin_ns": 0, "end_ns": 1, "cores": 2, "memory_mib": 1024, "ended": True}
    tenures = [plain | {"elapsed_us": 1_500_000}, plain | {"elapsed_us": 2_500_000}]
    usual = {"lines": lines, "total": total, "tenures": tenures, "gap_us": 0, "outside": {"core_us": 0, "mib_us": 0}}
    return usual | changes


def compared(flags: list[str]) -> dict[str, Any]:
    row = {"replica": "digits-r1-aaaa", "state": "closed", "granted_core_us": 2_000_000, "kernel_cpu_us": 500_000}
    row |= {"ratio": 0.25, "charged_mib": 48, "kernel_own_mib": None, "kernel_peak_rss_mib": 91, "flags": flags}
    total = {"granted_core_us": 2_000_000, "kernel_cpu_us": 500_000, "unknown": 0, "flagged": len(flags)}
    return {"replicas": [row], "total": total}


@pytest.fixture
def billed(served: Served) -> Served:
    served.state.bill = served.state.bill | {"machine": machine()}
    return served


def test_the_machines_lines_stand_below_the_bill_with_their_total(billed: Served) -> None:
    out = billed.serve("bill").out
    _, _, below = out.partition("MACHINE")
    rows = [line.split() for line in below.splitlines()[1:] if line.strip()]
    assert [row[0] for row in rows] == ["deployments", "platform", "unallocated", "overcommitted", "total"]
    assert rows[1][1:] == ["0.020", "1.049", "0.000001001"]
    assert rows[-1][1:3] == ["8.000", "1.049"]


def test_how_long_the_platform_had_the_machine_and_when_it_had_not_is_said(billed: Served) -> None:
    assert "had the machine for 4.0 s in 2 stretches" in billed.serve("bill").err
    billed.state.bill |= {"machine": machine(gap_us=61_000_000, outside={"core_us": 0, "mib_us": 5})}
    err = billed.serve("bill").err
    assert "61.0 s between them are on no line" in err
    assert "on no line of the machine" in err


def test_these_answers_are_what_the_api_answers() -> None:
    jsonschema.validate(BILL | {"machine": machine()}, ANSWERS["bill"])
    proof = {"ok": True, "lives": 0, "requests": 0, "problems": [], "notes": [], "maybe_unsent": []}
    proof |= {"machine": machine(), "kernel": compared(["x"])}
    jsonschema.validate(proof, ANSWERS["verify_bill"])


def test_a_platform_that_has_no_machine_lines_is_read_as_before(served: Served) -> None:
    assert "MACHINE" not in served.serve("bill").out


def test_the_equation_of_the_machine_is_printed_with_the_integers_that_were_compared(served: Served) -> None:
    served.state.verification = {"machine": machine()}
    out = served.serve("bill", "verify").out
    terms = "deployments 3000000 + platform 20000 + unallocated 5000000 + overcommitted -20000"
    assert f"{terms} = 8000000 core·µs of the machine" in out


@pytest.mark.parametrize("flags", [[], ["it used 3.000 core seconds"]])
def test_what_is_to_be_looked_at_is_named_and_is_no_failure(served: Served, flags: list[str]) -> None:
    served.state.verification = {"machine": machine(), "kernel": compared(flags)}
    result = served.serve("bill", "verify", "--kernel")
    assert result.exit_code == 0
    assert served.state.calls[-1] == ("GET", "/api/v1/bill/verify", {"kernel": "1"})
    (row,) = (line.split() for line in result.out.splitlines() if line.startswith("digits-r1-aaaa"))
    assert row == ["digits-r1-aaaa", "closed", "2.000", "0.500", "0.25", "48", "-", "91"]
    assert ("look: digits-r1-aaaa: it used 3.000 core seconds" in result.out) is bool(flags)
    assert f"{len(flags)} replica{'' if flags else 's'} to look at" in result.out


def test_a_proof_may_take_longer_than_other_calls(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    hasty = Client(served.url, TOKEN, timeout_s=0.1)
    monkeypatch.setattr("serve.cli.connect.connect", lambda url, home: Connection(hasty, hasty))
    served.state.proof_takes_s = 0.5
    verify(kernel=False, url=None, home=None, as_json=True)
