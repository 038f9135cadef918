"""The platform stops, dies and comes back: what was promised is kept, and nothing is left behind."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from pathlib import Path
from threading import Thread

import httpx
import pytest

from tests.e2e.conftest import StartPlatform
from tests.e2e.models import row, scripted
from tests.e2e.platforms import DIGITS, RunningPlatform
from tests.e2e.processes import wait_until
from tests.e2e.requests import READ, REQUESTS, THREE, labels
from tests.e2e.traffic import trickle

pytestmark = pytest.mark.e2e
MODEL = DIGITS / "model.onnx"


def verified(platform: RunningPlatform) -> dict[str, list[str]]:
    answer = platform.get("/bill/verify")
    assert answer["ok"] is True, answer
    assert answer["problems"] == []
    result: dict[str, list[str]] = answer
    return result


def test_a_restart_keeps_deployments_revisions_settings_and_bill(start: StartPlatform) -> None:
    platform = start()
    platform.deploy(MODEL, "--idle", "1s", "--label", "team=vision")
    platform.deploy(MODEL, "--idle", "2s", "--label", "team=vision")
    request_id = platform.infer("digits", THREE).headers["x-serve-request-id"]
    history, token = platform.get("/deployments/digits/history"), platform.home.token()
    assert platform.stop() == 0
    assert platform.processes() == {}
    assert platform.home.read_info() is None

    platform.start()
    assert platform.home.token() == token
    again = platform.get("/deployments/digits/history")
    assert [dict(line, state="") for line in again["revisions"]] == [
        dict(line, state="") for line in history["revisions"]
    ]
    assert platform.get("/deployments/digits")["spec"]["idle"] == 2
    assert set(platform.processes()) == {"platform", "ledger", "zygote"}, "nothing is started by a restart"
    before = platform.get("/bill")["total"]
    assert platform.get(f"/requests/{request_id}")["id"] == request_id
    assert [labels(platform.infer("digits", request).json()) for request in REQUESTS[:3]] == READ[:3]
    assert platform.get("/bill")["total"]["requests"] == before["requests"] + 3
    assert platform.deploy(MODEL, "--idle", "2s", "--label", "team=vision")["unchanged"] is True
    assert platform.deploy(MODEL, "--idle", "3s")["revision"] == 3, "numbers go on"
    verified(platform)


def test_sigterm_under_load_answers_what_is_inside_refuses_the_rest_and_leaves_nothing(
    start: StartPlatform, tmp_path: Path
) -> None:
    platform = start()
    settings = scripted(tmp_path, run_s=0.7)
    platform.deploy("-f", settings, "--name", "slow", "--concurrency", "4", "--threads", "1")
    url = f"{platform.info.url}/v2/models/slow/infer"
    inside: list[httpx.Response] = []

    def call() -> None:
        with httpx.Client(timeout=30) as client:
            inside.append(client.post(url, json=row(4)))

    callers = [Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    wait_until(lambda: platform.in_flight("slow") == 4, "four are inside")
    platform.process.send_signal(signal.SIGTERM)
    wait_until(lambda: platform.home.read_info() is None, "it drains")
    with httpx.Client(timeout=10) as client:
        late = client.post(url, json=row(4))
        assert (late.status_code, late.json()["code"]) == (503, "draining")
        assert int(late.headers["retry-after"]) >= 1
    for caller in callers:
        caller.join(20)
    assert [answer.status_code for answer in inside] == [200] * 4
    assert platform.process.wait(20) == 0
    assert platform.processes() == {}
    platform.start()
    assert platform.get("/bill")["total"]["requests"] >= 4
    assert verified(platform)["notes"] == [], "an orderly end estimates nothing"


def test_after_kill_9_the_next_start_sweeps_what_was_left_and_the_books_close(start: StartPlatform) -> None:
    platform = start(SERVE_CHECKPOINT_INTERVAL="0.5")
    platform.deploy(MODEL, "--min", "1")
    with trickle(platform, "digits", THREE) as traffic:
        traffic.wait_for(30)
        platform.crash()
    answered = [answer for answer in traffic.answers if answer.status_code == 200]
    wait_until(lambda: not platform.processes(), "zygote, replicas and ledger end with the platform")
    platform.start()
    result = verified(platform)
    assert any("estimate" in note for note in result["notes"]), result
    for answer in answered:
        platform.get(f"/requests/{answer.headers['x-serve-request-id']}")
    assert labels(platform.infer("digits", THREE).json()) == [3]


def test_a_replica_that_is_killed_from_outside_is_replaced_and_nobody_notices(start: StartPlatform) -> None:
    platform = start()
    platform.deploy(MODEL)
    with trickle(platform, "digits", THREE) as traffic:
        traffic.wait_for(5)
        (pid,) = platform.replicas()
        os.kill(pid, signal.SIGKILL)
        traffic.wait_for(20)
    assert traffic.errors == []
    assert traffic.statuses == {200}
    assert pid not in platform.replicas()
    reasons = " ".join(line["reason"] for line in platform.get("/deployments/digits/explain")["decisions"])
    assert "SIGKILL" in reasons or "crash" in reasons or "died" in reasons, reasons
    verified(platform)


def test_the_exec_driver_tells_the_same_story(start: StartPlatform) -> None:
    platform = start(SERVE_DRIVER="exec")
    receipt = platform.deploy(MODEL, "--idle", "1s")
    assert receipt["verified"] is True
    platform.wait_for_zero()
    assert set(platform.processes()) == {"platform", "ledger"}
    answer = platform.infer("digits", THREE)
    assert (labels(answer.json()), answer.headers["x-serve-cold-start"]) == ([3], "1")
    assert [labels(platform.infer("digits", request).json()) for request in REQUESTS] == READ
    verified(platform)


def test_a_dozen_deployments_at_zero_are_no_process_and_each_answers(start: StartPlatform, tmp_path: Path) -> None:
    platform = start()
    platform.deploy(MODEL, "--idle", "0s")
    digest = platform.get("/deployments/digits/history")["revisions"][0]["digest"]
    for number in range(12):
        file = {"path": "model.onnx", "size": MODEL.stat().st_size, "sha256": _sha256(MODEL)}
        body = {"spec": {"name": f"d{number}", "idle": 0}, "model": {"file": "model.onnx", "files": [file]}}
        answer = platform.api("POST", "/deployments", json=body)
        assert '"deployed"' in answer.text.splitlines()[-1], answer.text
    platform.wait_for_zero()
    assert {role: len(pids) for role, pids in platform.processes().items()} == {"platform": 1, "ledger": 1, "zygote": 1}
    listing = platform.get("/deployments")["deployments"]
    assert len(listing) == 13
    assert {item["state"] for item in listing} == {"cold"}
    for number in range(12):
        answer = platform.infer(f"d{number}", THREE)
        assert (labels(answer.json()), answer.headers["x-serve-cold-start"]) == ([3], "1")
    assert platform.get("/deployments/d7/history")["revisions"][0]["digest"] == digest
    assert platform.get("/platform")["store"]["used_bytes"] == MODEL.stat().st_size, "one copy of the bytes"


def test_a_ledger_that_is_lost_is_derived_anew_from_the_journal(start: StartPlatform) -> None:
    platform = start()
    platform.deploy(MODEL)
    request_id = platform.infer("digits", THREE).headers["x-serve-request-id"]
    assert platform.stop() == 0
    for path in platform.home.path.glob("ledger.db*"):
        path.unlink()
    platform.start()
    assert platform.get(f"/requests/{request_id}")["id"] == request_id
    verified(platform)


def test_a_store_that_is_lost_fails_its_deployments_until_they_are_deployed_again(start: StartPlatform) -> None:
    platform = start()
    platform.deploy(MODEL)
    assert platform.stop() == 0
    shutil.rmtree(platform.home.store)
    platform.start()
    answer = platform.infer("digits", THREE)
    assert (answer.status_code, answer.json()["code"]) == (503, "model_failed")
    assert "deploy it again" in answer.json()["error"]
    assert platform.http("GET", "/v2/models/digits/ready").status_code == 503
    assert platform.get("/deployments/digits")["state"] == "failed"
    assert platform.deploy(MODEL)["revision"] == 2
    assert labels(platform.infer("digits", THREE).json()) == [3]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
