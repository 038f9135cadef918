from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing import records
from billing.attribute import Parts
from billing.machine import MachineState
from tests.billing.replay import PRICES

ORIGIN = records.Origin("abcdefgh", "boot-1")
LIFE = records.Life("digits-r1-k7q2m9xd", "digits", 1, 2, 48, 1, 2, {"team": "vision"})
PARTS = Parts(1, 2, 3, 4, 5)
JOURNAL_PAGE = Path(__file__).parents[2] / "docs" / "journal.md"


def request_line(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "id": "abcdefgh-1",
        "mono_ns": 5,
        "wall_ns": 6,
        "status": 200,
        "charged": True,
        "reason": None,
        "rows": 1,
        "batch_rows": 8,
        "queue_us": 10,
        "inside_us": 320,
        "cold_us": 0,
        "busy_us": 300,
        "infer_us": 290,
        "bytes_in": 900,
        "bytes_out": 400,
        "cold": False,
        "price": "v",
        "client_id": None,
        "trace_id": None,
    }
    return records.RequestLines(LIFE, ORIGIN).line(**fields | changes)


def every_line() -> dict[str, bytes]:
    return {
        "request": request_line(),
        "checkpoint": records.checkpoint(LIFE, ORIGIN, PARTS, mono_ns=9, wall_ns=9),
        "segment": records.segment(LIFE, ORIGIN, PARTS, part="run", mono_ns=9, wall_ns=9, exit_reason="drained"),
        "machine": records.machine(MachineState(7, 2, 4096), ORIGIN, mono_ns=9, wall_ns=9),
        "price": records.price(PRICES, ORIGIN, mono_ns=9, wall_ns=9),
        "writer": records.writer(ORIGIN, ["old"], mono_ns=9, wall_ns=9),
    }


@pytest.mark.parametrize("kind", ["request", "checkpoint", "segment", "machine", "price", "writer"])
def test_every_record_is_one_line_of_json_that_ends_in_its_checksum(kind: str) -> None:
    line = every_line()[kind]
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    fields = json.loads(line)
    assert list(fields)[-1] == "crc"
    decoded = records.decode(line[:-1])
    assert decoded == {key: value for key, value in fields.items() if key != "crc"}
    assert decoded["kind"] == kind
    assert {"v", "id", "writer", "boot", "mono_ns", "wall_ns"} <= decoded.keys()


def test_the_journal_page_describes_exactly_the_fields_that_are_written() -> None:
    page = JOURNAL_PAGE.read_text()
    sections = {match[1]: match[2] for match in re.finditer(r"## Kind `(\w+)`\n(.*?)(?=\n## |\Z)", page, re.DOTALL)}
    common = {"kind", "v", "id", "writer", "boot", "mono_ns", "wall_ns", "crc"}
    for kind, line in every_line().items():
        described = set(re.findall(r"^\| `(\w+)` \|", sections[kind], re.MULTILINE))
        assert described == json.loads(line).keys() - common
    assert common == set(re.findall(r"^\| `(\w+)` \|", page.partition("## Kind")[0], re.MULTILINE))


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_never_goes_unnoticed(position: int, change: int) -> None:
    line = bytearray(request_line()[:-1])
    line[position % len(line)] ^= change
    with pytest.raises(records.RecordError):
        records.decode(bytes(line))


@given(st.text(st.characters(exclude_categories=())), st.text(st.characters(exclude_categories=())))
def test_no_text_a_caller_sends_can_break_a_line(client_id: str, trace_id: str) -> None:
    line = request_line(client_id=client_id, trace_id=trace_id)
    assert line.count(b"\n") == 1
    decoded = records.decode(line[:-1])
    if client_id.isprintable():
        assert decoded["client_id"] == client_id


@pytest.mark.parametrize("odd", [math.nan, math.inf, 1 << 70, -(1 << 70), object(), "\ud800", {1: "\udfff"}, [1 << 65]])
def test_a_value_json_cannot_hold_becomes_text_or_null(odd: Any) -> None:
    line = records.encode({"kind": "x", "v": 1, "odd": odd})
    assert line.count(b"\n") == 1
    assert "odd" in records.decode(line[:-1])


def test_a_record_of_another_format_version_is_refused_by_name() -> None:
    with pytest.raises(records.RecordError, match="format 2"):
        records.decode(records.encode({"kind": "request", "v": 2})[:-1])


def test_memory_is_charged_in_whole_mebibytes_rounded_up() -> None:
    assert [records.mebibytes(size) for size in (0, 1, 1 << 20, (1 << 20) + 1)] == [0, 1, 1, 2]
