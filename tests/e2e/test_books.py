"""The books of a real platform: they hold against the kernel's counters, and survive what kills can do to them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.conftest import StartPlatform
from tests.e2e.models import row, scripted
from tests.e2e.platforms import DIGITS, RunningPlatform
from tests.e2e.processes import wait_until
from tests.e2e.requests import THREE
from tests.e2e.traffic import trickle

pytestmark = pytest.mark.e2e
MODEL = DIGITS / "model.onnx"


def adds_up(platform: RunningPlatform) -> dict[str, int]:
    """Verify, and return the core·µs of each line of the machine."""
    answer = platform.get("/bill/verify")
    assert answer["problems"] == []
    lines, total = answer["machine"]["lines"], answer["machine"]["total"]
    assert sum(line["core_us"] for line in lines) == total["core_us"]
    assert sum(line["mib_us"] for line in lines) == total["mib_us"]
    return {line["line"]: line["core_us"] for line in lines}


def test_what_is_charged_stands_beside_what_the_kernel_counted_of_live_and_ended_replicas(
    start: StartPlatform, tmp_path: Path
) -> None:
    platform = start()
    platform.deploy("-f", scripted(tmp_path, run_s=0.05, memory_mib=30), "--name", "held", "--idle", "10m")
    platform.deploy(MODEL, "--idle", "1s")
    for _ in range(5):
        assert platform.infer("digits", THREE).status_code == 200
        assert platform.infer("held", row(1)).status_code == 200
    wait_until(lambda: not platform.pids("digits"), "digits sleeps")
    lines = adds_up(platform)
    assert lines["platform"] > 0
    assert lines["zygote"] > 0
    assert lines["deployments"] > 0
    compared = platform.cli("bill", "verify", "--kernel", "--json").json["kernel"]
    by_state = {found["state"]: found for found in compared["replicas"]}
    assert set(by_state) == {"open", "closed"}
    for found in compared["replicas"]:
        assert found["kernel_cpu_us"] > 0
        assert found["kernel_peak_rss_mib"] > 0
        assert found["flags"] == [], "nothing used more than it was charged for"
    (held,) = (found for found in compared["replicas"] if found["state"] == "open")
    assert 30 <= held["kernel_own_mib"] <= held["charged_mib"] + 1
    assert compared["total"]["unknown"] == 0
    shown = platform.cli("bill", "verify", "--kernel").out
    assert "core·µs of the machine" in shown
    assert held["replica"] in shown
    assert "unallocated" in platform.cli("bill").out


def test_a_ledger_killed_again_and_again_is_never_noticed_by_callers_and_loses_nothing(start: StartPlatform) -> None:
    platform = start()
    platform.deploy(MODEL, "--idle", "10m")
    before = platform.get("/bill")["total"]["requests"]
    with trickle(platform, "digits", THREE) as traffic:
        for _ in range(5):
            wait_until(lambda: platform.processes().get("ledger"), "a ledger runs")
            (pid,) = platform.processes()["ledger"]
            os.kill(pid, signal.SIGKILL)
            traffic.wait_for(20)
            platform.get("/bill")
    assert traffic.errors == []
    assert traffic.statuses == {200}
    assert platform.get("/bill")["total"]["requests"] == before + len(traffic.answers)
    adds_up(platform)


def test_a_damaged_ledger_is_derived_anew_at_the_start_and_the_bill_is_the_same(start: StartPlatform) -> None:
    platform = start()
    platform.deploy(MODEL, "--idle", "1s")
    for _ in range(3):
        platform.infer("digits", THREE)
    wait_until(lambda: not platform.get("/deployments/digits")["replicas"], "the life is closed in the books")
    before = platform.get("/bill")
    platform.stop()
    platform.home.ledger.write_bytes(b"this is no database " * 1000)
    platform.start()
    after = platform.get("/bill")
    assert (after["rows"], after["total"]) == (before["rows"], before["total"])
    assert "set aside and is derived anew from the journal" in platform.log()
    adds_up(platform)


def test_after_kill_9_lives_are_closed_and_what_may_not_have_left_is_named(
    start: StartPlatform, tmp_path: Path
) -> None:
    platform = start()
    platform.deploy(MODEL, "--idle", "10m")
    with trickle(platform, "digits", THREE) as traffic:
        traffic.wait_for(20)
        platform.crash()
    platform.start()
    answer = platform.get("/bill/verify")
    assert answer["problems"] == []
    assert ["closed at its last known instant, estimated" in note for note in answer["notes"]].count(True) == 1
    answered = [reply.headers["x-serve-request-id"] for reply in traffic.answers if reply.status_code == 200]
    for request_id in answered:
        assert platform.get(f"/requests/{request_id}")["id"] == request_id
    recorded = platform.get("/bill")["total"]["requests"]
    assert len(answered) <= recorded <= len(answered) + len(answer["maybe_unsent"])
    assert [tenure["ended"] for tenure in answer["machine"]["tenures"]] == [False, False]
    assert answer["machine"]["gap_us"] > 0
    adds_up(platform)
