"""What people read on a terminal: the bill whole at any width, and log lines without what is told twice."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
from typing import Any

import pytest

from serve.cli.observe import _readable
from tests.cli.conftest import COMMAND, Served

PARTS = ("cold", "billed", "lost", "idle", "drain", "request")


def row(group: str | None, probes: int = 0, **costs_nano: int) -> dict[str, Any]:
    costs = {f"{part}_cost_nano": costs_nano.get(part, 0) for part in PARTS}
    counts = {"group": group, "requests": 5, "cold_starts": 1, "probes": probes}
    return counts | costs | {"cost_nano": sum(costs.values())}


def bill(*rows: dict[str, Any]) -> dict[str, Any]:
    total = {key: sum(each[key] for each in rows) for key in rows[0] if key != "group"}
    return {
        "by": "deployment",
        "since_ns": 1_793_491_200_000_000_000,
        "until_ns": None,
        "currency": "USD",
        "rows": rows,
        "total": {"group": None, **total},
    }


def on_terminal(served: Served, columns: int, *arguments: str) -> str:
    """Return what the command shows on a terminal of that width, without colours."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {key: value for key, value in served.serve.environment.items() if key != "COLUMNS"} | {
        "TERM": "xterm"
    }
    with subprocess.Popen([*COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment) as child:
        os.close(slave)
        shown = b""
        try:
            while chunk := os.read(master, 1 << 16):
                shown += chunk
        except OSError:  # Linux's word for the end of a terminal
            pass
        os.close(master)
        assert child.wait(30) == 0, shown
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r", "")


@pytest.mark.parametrize("columns", [30, 80, 100, 200])
def test_no_number_of_the_bill_is_broken_or_cut_at_any_width(served: Served, columns: int) -> None:
    costs = {
        "cold": 123_456_789,
        "billed": 2_345_000_001,
        "lost": 1,
        "idle": 988_776_655,
        "drain": 17,
        "request": 10**9,
    }
    rows = [row("digits-of-the-vision-team", 21, **costs), row("b", **costs)]
    served.state.bill = bill(*rows)
    shown = on_terminal(served, columns, "bill")
    for number in ("0.123456789", "2.345000001", "0.000000001", "0.988776655", "0.000000017", "4.457233463"):
        assert re.search(rf"(?<![0-9.]){re.escape(number)}(?![0-9.])", shown), (number, shown)
    assert max(map(len, shown.splitlines()[1:])) <= max(columns, 38)


def test_a_bill_that_fits_is_a_table_whose_heads_are_whole(served: Served) -> None:
    served.state.bill = bill(row("digits", cold=1500, billed=20, idle=3))
    _, *lines = on_terminal(served, 80, "bill").splitlines()
    heads, (digits, total) = " ".join(lines[:-2]), lines[-2:]
    assert set(heads.split()) == {"DEPLOYMENT", "REQUESTS", "COLD", "STARTS", "ANSWERED", "IDLE", "TOTAL", "USD"}
    assert (
        digits.split()[1:] == total.split()[1:] == ["5", "1", "0.0000015", "0.00000002", "0.000000003", "0.000001523"]
    )


def test_columns_of_money_that_nobody_spent_and_probes_that_nobody_made_are_left_out(served: Served) -> None:
    served.state.bill = bill(row("digits", cold=1500))
    plain = served.serve("bill").out.splitlines()
    assert plain[0].split() == ["DEPLOYMENT", "REQUESTS", "COLD", "STARTS", "COLD", "TOTAL", "USD"]
    assert plain[-1].split() == ["total", "5", "1", "0.0000015", "0.0000015"]
    served.state.bill = bill(row("digits", 21, request=1500), row("b", lost=1))
    heads = served.serve("bill").out.splitlines()[0]
    assert heads.split()[4:] == ["PROBES", "LOST", "FEE", "TOTAL", "USD"]
    assert served.serve("bill", "--json").json["rows"][0]["drain_cost_nano"] == 0


def test_the_bill_names_its_currency_and_period_on_stderr(served: Served) -> None:
    result = served.serve("bill", TZ="UTC")
    assert result.err == "in USD, from the beginning until now\n"
    served.state.bill = bill(row("digits", cold=1500))
    assert served.serve("bill", TZ="UTC").err == "in USD, from 2026-11-01 00:00:00 until now\n"


def test_a_json_log_line_is_told_as_time_replica_level_message_and_fields_once() -> None:
    entry = {
        "time": "2026-11-01T10:00:00.123456+00:00",
        "level": "WARNING",
        "logger": "runtime",
        "message": "took long",
        "replica": "digits-r1-aaaa",
        "request_id": "w-7",
        "exception": "Traceback …\nValueError: no",
    }
    line = {"time": entry["time"], "replica": "digits-r1-aaaa", "line": json.dumps(entry)}
    first, *rest = _readable(line).splitlines()
    assert first.endswith("digits-r1-aaaa WARNING took long request_id=w-7")
    assert first.count("digits-r1-aaaa") == 1
    assert rest == ["Traceback …", "ValueError: no"]


@pytest.mark.parametrize("text", ["plain", "{torn", '{"no": "message"}', "[1]", "{" * 100_000, '{"a":' * 100_000])
def test_a_log_line_that_is_not_ours_is_told_as_it_came(text: str) -> None:
    assert _readable({"replica": "r", "line": text}) == f"r {text}"
