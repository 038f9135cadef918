"""Models that fail while they serve: the caller hears why, others go on, and a repaired model is served again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.models import row, scripted
from tests.e2e.platforms import RunningPlatform
from tests.e2e.processes import wait_until

pytestmark = pytest.mark.e2e
BAD, GOOD = row(13), row(1)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    with RunningPlatform(tmp_path_factory.mktemp("failing")) as platform:
        yield platform


@pytest.mark.parametrize(("action", "word"), [("exit", "7"), ("kill", "SIGKILL"), ("abort", "SIGABRT")])
def test_a_request_that_kills_its_replica_twice_is_502_with_the_reason(
    platform: RunningPlatform, tmp_path: Path, action: str, word: str
) -> None:
    platform.deploy("-f", scripted(tmp_path, on_value={"13": action}), "--name", action, "--idle", "1s")
    answer = platform.infer(action, BAD)
    assert (answer.status_code, answer.json()["code"]) == (502, "replica_lost")
    assert word in answer.json()["error"], answer.text
    assert "serve logs" in answer.json()["error"]
    assert platform.infer(action, GOOD).status_code == 200, "the next request is served"


def test_a_replica_that_dies_once_costs_its_caller_nothing(platform: RunningPlatform, tmp_path: Path) -> None:
    settings = scripted(tmp_path, on_value={"13": "kill"}, once=str(tmp_path / "once"))
    platform.deploy("-f", settings, "--name", "once", "--idle", "1s")
    assert platform.infer("once", BAD).status_code == 200
    assert (tmp_path / "once").exists()


@pytest.mark.parametrize(("action", "status"), [("raise", 500), ("reject", 400)])
def test_a_request_that_the_engine_fails_is_told_and_the_replica_stays(
    platform: RunningPlatform, tmp_path: Path, action: str, status: int
) -> None:
    platform.deploy("-f", scripted(tmp_path, on_value={"13": action}), "--name", action, "--idle", "1s")
    before = platform.infer(action, GOOD)
    answer = platform.infer(action, BAD)
    assert answer.status_code == status, answer.text
    assert "Traceback" not in answer.text
    assert "the script" in answer.json()["error"]
    assert answer.headers["x-serve-replica"] == before.headers["x-serve-replica"]
    assert platform.infer(action, GOOD).headers["x-serve-replica"] == before.headers["x-serve-replica"]


def test_a_request_that_takes_too_long_is_504_and_its_replica_is_killed(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    settings = scripted(tmp_path, on_value={"13": "hang"})
    platform.deploy("-f", settings, "--name", "hang", "--execution-timeout", "1s", "--idle", "5s")
    (pid,) = platform.pids("hang")
    answer = platform.infer("hang", BAD)
    assert (answer.status_code, answer.json()["code"]) == (504, "execution_timeout")
    assert "execution_timeout" in answer.json()["error"]
    wait_until(lambda: pid not in platform.replicas(), "the hung replica is gone")
    assert platform.infer("hang", GOOD).status_code == 200
    reasons = " ".join(decision["reason"] for decision in platform.get("/deployments/hang/explain")["decisions"])
    assert "execution" in reasons


def test_a_revision_that_no_longer_starts_is_503_with_the_reason_and_heals_by_a_new_one(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.json"
    platform.deploy("-f", scripted(tmp_path, override=str(broken)), "--name", "rots", "--idle", "0s")
    wait_until(lambda: not platform.pids("rots"), "it is at zero")
    broken.write_text('{"load_exit": 9}')
    answers = [platform.infer("rots", GOOD) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {503}, answers[0].text
    assert {answer.json()["code"] for answer in answers} == {"model_failed"}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
    status = platform.get("/deployments/rots")
    assert status["state"] == "failed"
    assert "9" in str(status["failure"])
    platform.deploy("-f", scripted(tmp_path, factor=2), "--name", "rots", "--idle", "1s")
    assert platform.infer("rots", GOOD).json()["outputs"][0]["data"][0] == 2


def test_queue_and_concurrency_have_limits_and_say_when_to_come_back(platform: RunningPlatform, tmp_path: Path) -> None:
    settings = scripted(tmp_path, run_s=0.4, batchable=False)
    limits = ("--max", "1", "--concurrency", "1", "--queue", "2", "--threads", "1")
    platform.deploy("-f", settings, "--name", "narrow", *limits)
    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda _: platform.infer("narrow", GOOD), range(8)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(refused) == 5
    for answer in refused:
        assert (answer.status_code, answer.json()["code"]) == (503, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        assert int(answer.headers["retry-after-ms"]) >= 1
    assert len(platform.pids("narrow")) == 1, "max was kept"
    assert platform.cli("delete", "narrow", "--yes").exit_code == 0


def test_who_does_not_want_to_wait_wakes_the_model_for_those_who_come_later(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    platform.deploy("-f", scripted(tmp_path, load_s=0.5), "--name", "patient", "--idle", "0s")
    wait_until(lambda: not platform.pids("patient"), "it is at zero")
    began_s = time.monotonic()
    answer = platform.infer("patient", GOOD, prefer="wait=0")
    assert (answer.status_code, answer.json()["code"]) == (503, "queue_timeout")
    assert int(answer.headers["retry-after"]) >= 1
    assert platform.infer("patient", GOOD, prefer="wait=20").status_code == 200
    assert time.monotonic() - began_s < 15


def test_a_request_deadline_passes_while_the_model_starts(platform: RunningPlatform, tmp_path: Path) -> None:
    platform.deploy("-f", scripted(tmp_path, load_s=2), "--name", "late", "--idle", "0s", "--timeout", "3s")
    wait_until(lambda: not platform.pids("late"), "it is at zero")
    answer = platform.infer("late", GOOD, prefer="wait=1")
    assert (answer.status_code, answer.json()["code"]) == (503, "queue_timeout")


def test_the_bill_of_failures_adds_up_and_charges_no_lost_work(platform: RunningPlatform) -> None:
    result = platform.cli("bill", "verify", "--json")
    assert result.json["problems"] == [], result.json
    rows = {line["group"]: line for line in platform.get("/bill")["rows"]}
    assert rows["hang"]["lost_cost_nano"] > 0


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1.5", "true", "null", '"1"', "9223372036854775808", "1e400"])
def test_a_value_that_an_integer_cannot_hold_is_400(platform: RunningPlatform, tmp_path: Path, value: str) -> None:
    if "whole" not in [item["name"] for item in platform.get("/deployments")["deployments"]]:
        tensor = {"input": "x", "output": "y", "datatype": "INT64", "shape": [-1]}
        platform.deploy("-f", scripted(tmp_path, tensors=[tensor]), "--name", "whole", "--idle", "10m")
    body = '{"inputs":[{"name":"x","datatype":"INT64","shape":[1],"data":[%s]}]}'
    answer = platform.infer("whole", (body % value).encode())
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request"), answer.text
    largest = platform.infer("whole", (body % 9223372036854775807).encode())
    assert largest.json()["outputs"][0]["data"] == [9223372036854775807]
