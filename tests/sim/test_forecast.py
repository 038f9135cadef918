"""`serve explain --what-if`: recorded traffic lives again as it was, and under other settings."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serve.core.clock import NS_PER_S
from simulator.forecast import recorded
from simulator.forecast.compare import Question, forecast
from simulator.forecast.recorded import NotRecorded
from tests.sim.journals import COLD_US, PRICES, Written, question


def three_lives() -> Written:
    """Six calls, two to each of three replicas that leave after ten seconds without a call."""
    written = Written(end_s=400)
    for begin_s in (100, 200, 300):
        written.life(begin_s, [begin_s, begin_s + 5], idle_s=10)
    return written


def test_as_it_was_is_what_was_recorded_to_the_microsecond_and_the_nano(tmp_path: Path) -> None:
    answer = forecast(question(tmp_path, three_lives(), idle=10))
    assert answer["recorded"]["requests"] == 6
    assert answer["recorded"]["cold_starts"] == answer["recorded"]["starts"] == 3
    assert answer["recorded"]["wait_us"] == {"p50": 0, "p95": COLD_US, "p99": COLD_US}
    assert answer["as_it_was"] == answer["what_if"] == answer["recorded"] | {"refused": 0}
    assert answer["recorded"]["refused"] is None
    assert answer["conclusion"] == "It would have cost the same; nobody would have waited longer or less."
    assert answer["weak"] is None


def test_a_longer_idle_time_keeps_the_replica_and_costs_its_memory(tmp_path: Path) -> None:
    answer = forecast(question(tmp_path, three_lives(), idle=1000))
    was, then = answer["as_it_was"], answer["what_if"]
    assert (then["starts"], then["cold_starts"]) == (1, 1)
    assert then["busy_cost_nano"] == was["busy_cost_nano"]
    assert then["cold_cost_nano"] == was["cold_cost_nano"] // 3
    assert then["replica_us"] == 300_000_000, "from its start to the end of the tenure"
    assert then["idle_cost_nano"] > was["idle_cost_nano"]
    assert "2 of 6 would have waited 500 ms less" in answer["conclusion"]
    assert answer["changes"] == {"idle": [10.0, 1000.0]}


def test_a_shorter_idle_time_starts_a_replica_for_every_call(tmp_path: Path) -> None:
    answer = forecast(question(tmp_path, three_lives(), idle=1))
    assert (answer["what_if"]["starts"], answer["what_if"]["cold_rate"]) == (6, 1.0)
    assert "3 of 6 callers would have waited 500 ms longer" in answer["conclusion"]


def test_a_minimum_keeps_replicas_from_the_first_start_on(tmp_path: Path) -> None:
    answer = forecast(question(tmp_path, three_lives(), min=2))
    assert (answer["what_if"]["starts"], answer["what_if"]["replica_us"]) == (2, 600_000_000)


def test_calls_that_come_together_wait_for_each_other_where_fewer_replicas_may_run(tmp_path: Path) -> None:
    written = Written(end_s=200)
    for begin_s in (100.0, 100.001, 100.002):
        written.life(begin_s, [begin_s], idle_s=10)
    answer = forecast(question(tmp_path, written, max=1))
    assert answer["what_if"]["starts"] == 1
    assert answer["what_if"]["wait_us"]["p99"] == COLD_US + 2 * 50_000 - 2_000


def test_calls_that_find_the_queue_full_are_counted_as_refused(tmp_path: Path) -> None:
    written = Written(end_s=200)
    for begin_s in (100.0, 100.001, 100.002):
        written.life(begin_s, [begin_s], idle_s=10)
    answer = forecast(question(tmp_path, written, max=1, queue=1))
    assert answer["what_if"]["refused"] == 2
    assert "2 would have been refused instead of 0" in answer["conclusion"]


def test_a_platform_that_ended_takes_its_replicas_along_in_every_simulation(tmp_path: Path) -> None:
    first, second = Written(end_s=110), Written(end_s=50, writer="bcdefghi", mono_ns=7, wall_ns=Written(0).wall_ns * 2)
    first.life(100, [100], idle_s=9)
    second.life(20, [20], idle_s=10)
    answer = forecast(question(tmp_path, first, second, idle=1000))
    assert answer["as_it_was"]["starts"] == answer["what_if"]["starts"] == 2
    assert answer["span_s"] == 10 + 50, "from the first start of the revision on"


def test_publishing_holds_its_replica_and_its_inferences_are_no_requests(tmp_path: Path) -> None:
    written = Written(end_s=200)
    written.life(100, [100.6 + number * 0.06 for number in range(20)], idle_s=10, reason="probe")
    written.life(150, [150], idle_s=10)
    answer = forecast(question(tmp_path, written))
    for side in ("recorded", "as_it_was"):
        assert (answer[side]["requests"], answer[side]["starts"], answer[side]["cold_starts"]) == (1, 2, 1)
        assert answer[side]["request_cost_nano"] == PRICES.request_nano


def test_a_forecast_says_that_it_is_weak_where_what_was_recorded_comes_out_differently(tmp_path: Path) -> None:
    answer = forecast(question(tmp_path, three_lives(), now="1s"))
    assert "6 starts of replicas instead of 3" in answer["weak"]


def test_only_the_time_asked_for_counts_and_nothing_recorded_is_a_sentence(tmp_path: Path) -> None:
    asked = question(tmp_path, three_lives())
    since = dataclasses.replace(asked, since_ns=Written(0).wall_ns + 150 * NS_PER_S)
    assert forecast(since)["recorded"]["requests"] == 4
    with pytest.raises(NotRecorded, match="no request of digits-r1 is recorded in that time: call it first"):
        forecast(dataclasses.replace(asked, until_ns=Written(0).wall_ns + 50 * NS_PER_S))


def test_more_requests_than_can_be_simulated_are_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "MOST_REQUESTS", 5)
    with pytest.raises(NotRecorded, match=r"more than 5 requests of digits-r1 .*ask about less with --since"):
        forecast(question(tmp_path, three_lives()))


def test_the_process_answers_one_question_and_refuses_with_a_sentence(tmp_path: Path) -> None:
    asked = question(tmp_path, three_lives(), idle=1000)
    assert process(asked)["what_if"]["starts"] == 1
    assert "is recorded in that time" in process(dataclasses.replace(asked, until_ns=1))["error"]


def process(asked: Question) -> dict[str, Any]:
    order = {
        "ledger": str(asked.ledger), "name": asked.key.name, "revision": asked.key.number, "threads": 1,
        "now": asked.now.model_dump(mode="json"), "changed": asked.changed.model_dump(mode="json"),
        "is_batchable": False, "since_ns": asked.since_ns, "until_ns": asked.until_ns, "cores": 2,
        "prices": [PRICES.as_record()], "memory_budget_bytes": 1 << 30, "deadline_s": 30,
    }  # fmt: skip
    command = [sys.executable, "-P", "-m", "simulator"]
    done = subprocess.run(command, input=json.dumps(order).encode(), capture_output=True, check=True, timeout=40)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
