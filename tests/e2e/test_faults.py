"""Replicas that are killed, stopped, removed and replaced while they have requests: no caller notices."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.models import row, scripted
from tests.e2e.platforms import RunningPlatform
from tests.e2e.processes import wait_until
from tests.e2e.traffic import trickle

pytestmark = pytest.mark.e2e
POISON = 13
DRAIN_S = 1


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    """Its time to drain is shorter than the requests of these tests."""
    folder = tmp_path_factory.mktemp("faults")
    with RunningPlatform(folder, SERVE_DRAIN_TIMEOUT=str(DRAIN_S), SERVE_KEEP_REVISIONS="2") as platform:
        yield platform


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as callers:
        yield callers


def reasons(platform: RunningPlatform, name: str) -> str:
    return " ".join(line["reason"] for line in platform.get(f"/deployments/{name}/explain")["decisions"])


def first(answer: httpx.Response) -> float:
    assert answer.status_code == 200, answer.text
    value: float = answer.json()["outputs"][0]["data"][0]
    return value


def test_a_replica_killed_while_it_loads_costs_its_callers_nothing(
    platform: RunningPlatform, tmp_path: Path, callers: ThreadPoolExecutor
) -> None:
    platform.deploy("-f", scripted(tmp_path, load_s=0.4, factor=2), "--name", "loads", "--idle", "0s")
    wait_until(lambda: not platform.pids("loads"), "it is at zero")
    asked = [callers.submit(platform.infer, "loads", row(value)) for value in (1, 2, 3)]
    wait_until(lambda: [pid for pid in platform.pids("loads") if pid], "it loads")
    (pid,) = platform.pids("loads")
    os.kill(pid, signal.SIGKILL)
    assert [first(answer.result()) for answer in asked] == [2, 4, 6]
    assert "SIGKILL" in reasons(platform, "loads")


def test_a_replica_killed_while_idle_is_not_missed(platform: RunningPlatform, tmp_path: Path) -> None:
    platform.deploy("-f", scripted(tmp_path), "--name", "idle")
    (pid,) = platform.pids("idle")
    os.kill(pid, signal.SIGKILL)
    assert first(platform.infer("idle", row(5))) == 5
    assert pid not in platform.pids("idle")


@pytest.mark.parametrize("inside", [1, 6])
def test_requests_inside_a_killed_replica_are_each_answered_with_what_is_theirs(
    platform: RunningPlatform, tmp_path: Path, callers: ThreadPoolExecutor, inside: int
) -> None:
    slow = {str(value): "slow" for value in range(1, inside + 1)}
    settings = scripted(tmp_path, on_value=slow, slow_s=0.2, factor=3, batchable=inside > 1)
    name = f"inside{inside}"
    platform.deploy("-f", settings, "--name", name, "--concurrency", "16", "--max", "1", "--threads", "1")
    (pid,) = platform.pids(name)
    asked = [callers.submit(platform.infer, name, row(value)) for value in range(1, inside + 1)]
    wait_until(lambda: platform.in_flight(name) == inside, "all are inside")
    os.kill(pid, signal.SIGKILL)
    answers = [answer.result() for answer in asked]
    assert [first(answer) for answer in answers] == [3 * value for value in range(1, inside + 1)]
    assert all(answer.headers["x-serve-replica"] for answer in answers)
    ids = [answer.headers["x-serve-request-id"] for answer in answers]
    assert len({platform.get(f"/requests/{request_id}")["id"] for request_id in ids}) == inside


def test_a_request_that_kills_is_alone_with_its_fate(
    platform: RunningPlatform, tmp_path: Path, callers: ThreadPoolExecutor
) -> None:
    settings = scripted(tmp_path, slow_s=0.3, on_value={"1": "slow", str(POISON): "abort"})
    platform.deploy("-f", settings, "--name", "poison", "--concurrency", "16", "--max", "1", "--threads", "1")
    keeping = callers.submit(platform.infer, "poison", row(1))
    wait_until(lambda: platform.in_flight("poison") == 1, "a run is under way: the next gather to a batch")
    mates = [callers.submit(platform.infer, "poison", row(value)) for value in (2, 3, 4, 5)]
    poison = callers.submit(platform.infer, "poison", row(POISON))
    assert first(keeping.result()) == 1
    assert [first(mate.result()) for mate in mates] == [2, 3, 4, 5]
    refused = poison.result()
    assert (refused.status_code, refused.json()["code"]) == (502, "replica_lost")
    assert "SIGABRT" in refused.json()["error"]
    assert "Fatal Python error: Aborted" in platform.cli("logs", "poison").out


def test_a_replica_killed_while_it_drains_is_gone_and_nobody_cares(platform: RunningPlatform, tmp_path: Path) -> None:
    platform.deploy("-f", scripted(tmp_path / "1"), "--name", "drains")
    (old,) = platform.pids("drains")
    os.kill(old, signal.SIGSTOP)  # so that it does not heed the order
    platform.deploy("-f", scripted(tmp_path / "2", factor=2), "--name", "drains")

    def states() -> dict[int, str]:
        return {replica["pid"]: replica["state"] for replica in platform.get("/deployments/drains")["replicas"]}

    wait_until(lambda: states().get(old) == "draining", "the old one was told to go")
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: old not in states(), "it is gone")
    assert first(platform.infer("drains", row(4))) == 8


def test_a_stopped_replica_is_killed_when_time_is_up_and_only_the_overdue_caller_hears_of_it(
    platform: RunningPlatform, tmp_path: Path, callers: ThreadPoolExecutor
) -> None:
    limits = ("--execution-timeout", "1s", "--concurrency", "4", "--max", "1")
    platform.deploy("-f", scripted(tmp_path), "--name", "stopped", *limits)
    (pid,) = platform.pids("stopped")
    os.kill(pid, signal.SIGSTOP)
    early = callers.submit(platform.infer, "stopped", row(1))
    wait_until(lambda: platform.in_flight("stopped") == 1, "the first is inside")
    time.sleep(0.5)
    late = callers.submit(platform.infer, "stopped", row(2))
    overdue = early.result()
    assert (overdue.status_code, overdue.json()["code"]) == (504, "execution_timeout")
    assert first(late.result()) == 2, "it had time left: it was sent again"
    assert "execution_timeout" in reasons(platform, "stopped")
    assert pid not in platform.pids("stopped")


def test_requests_longer_than_every_time_limit_of_scaling_are_waited_for(
    platform: RunningPlatform, tmp_path: Path, callers: ThreadPoolExecutor
) -> None:
    """Longer than idle time, windows and the time to drain; the revision is replaced, retired and deleted meanwhile."""
    settings = scripted(tmp_path / "1", on_value={"7": "slow"}, slow_s=3)
    quick = ("--idle", "0s", "--stable-window", "1s", "--panic-window", "0.1s")
    for name in ("kept", "replaced", "deleted"):
        platform.deploy("-f", settings, "--name", name, *quick, "--threads", "1")
    asked: dict[str, Future[httpx.Response]] = {}
    for name in ("kept", "replaced", "deleted"):
        asked[name] = callers.submit(platform.infer, name, row(7))
    for name in asked:
        wait_until(lambda name=name: platform.in_flight(name) == 1, f"{name} is inside")  # type: ignore[misc]
    for factor in (2, 3):  # two revisions are retained: the one that runs is dropped
        platform.deploy("-f", scripted(tmp_path / str(factor), factor=factor), "--name", "replaced", *quick)
    callers.submit(platform.cli, "delete", "deleted", "--yes")
    wait_until(lambda: platform.infer("deleted", row(1)).status_code == 404, "the name means nothing")
    assert {name: first(answer.result()) for name, answer in asked.items()} == dict.fromkeys(asked, 7)
    assert asked["replaced"].result().headers["x-serve-revision"] == "1"
    assert first(platform.infer("replaced", row(7))) == 21


def test_roll_over_roll_back_and_delete_under_load_fail_nobody(platform: RunningPlatform, tmp_path: Path) -> None:
    platform.deploy("-f", scripted(tmp_path / "1", factor=1), "--name", "rolls")
    with trickle(platform, "rolls", row(1), threads=4) as traffic:
        traffic.wait_for(20)
        platform.deploy("-f", scripted(tmp_path / "2", factor=2), "--name", "rolls")
        traffic.wait_for(20)
        assert platform.cli("rollback", "rolls").exit_code == 0
        traffic.wait_for(20)
        assert traffic.statuses == {200}
        before = len(traffic.answers)
        assert platform.cli("delete", "rolls", "--yes").exit_code == 0
        traffic.wait_for(20)
    assert traffic.errors == []
    served = [answer for answer in traffic.answers if answer.status_code == 200]
    assert [first(answer) for answer in served] == [float(answer.headers["x-serve-revision"]) for answer in served]
    changes = [
        revision for revision, next_ in zip(traffic.revisions, traffic.revisions[1:], strict=False) if revision != next_
    ]
    assert changes[:1] == ["1"]
    assert {answer.status_code for answer in traffic.answers[before:]} <= {200, 404, 503}
    assert {answer.json()["code"] for answer in traffic.answers if answer.status_code == 503} <= {"draining"}
    assert traffic.answers[-1].status_code == 404


def test_an_old_revision_is_woken_by_who_pins_it_and_goes_again(platform: RunningPlatform, tmp_path: Path) -> None:
    for factor in (1, 2):
        settings = scripted(tmp_path / str(factor), factor=factor)
        platform.deploy("-f", settings, "--name", "pinned", "--idle", "1s")
    answer = platform.infer("pinned/versions/1", row(3))
    assert (first(answer), answer.headers["x-serve-revision"]) == (3, "1")
    assert first(platform.infer("pinned", row(3))) == 6

    def running() -> set[int]:
        return {replica["revision"] for replica in platform.get("/deployments/pinned")["replicas"]}

    wait_until(lambda: 1 not in running(), "the old one has nothing to do")


def test_a_model_that_no_longer_loads_is_tried_less_and_less_and_comes_back_by_itself(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    cause = tmp_path / "cause"
    platform.deploy("-f", scripted(tmp_path, factor=11, override=str(cause)), "--name", "rots", "--idle", "0s")
    wait_until(lambda: not platform.pids("rots"), "it is at zero")
    cause.write_text('{"load_exit": 9}')
    refused = platform.infer("rots", row(1))
    assert (refused.status_code, refused.json()["code"]) == (503, "model_failed")
    assert "exit status 9" in refused.json()["error"]
    status = platform.get("/deployments/rots")
    assert (status["state"], "exit status 9" in status["failure"]) == ("failed", True)
    logs = list((platform.home.logs / "replicas" / "rots").iterdir())
    for _ in range(20):
        assert platform.infer("rots", row(1)).status_code == 503
    tries = len(list((platform.home.logs / "replicas" / "rots").iterdir())) - len(logs)
    assert tries <= 1, "those who are refused start nothing"
    cause.unlink()
    time.sleep(float(refused.headers["retry-after-ms"]) / 1000)
    assert first(platform.infer("rots", row(1))) == 11
    assert platform.get("/deployments/rots")["state"] in {"ready", "cold"}


def test_a_load_that_hangs_is_killed_at_the_start_timeout_and_explained(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    limits = ("--idle", "0s", "--start-timeout", "1s")
    platform.deploy("-f", scripted(tmp_path, override=str(tmp_path / "cause")), "--name", "hangs", *limits)
    wait_until(lambda: not platform.pids("hangs"), "it is at zero")
    (tmp_path / "cause").write_text('{"load_s": 600}')
    answer = platform.infer("hangs", row(1), prefer="wait=2")
    assert answer.status_code == 503
    assert "start_timeout" in reasons(platform, "hangs")


def test_memory_that_runs_out_in_a_run_is_told_and_the_replica_serves_on(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    platform.deploy("-f", scripted(tmp_path, on_value={"13": "starve"}), "--name", "starves")
    (pid,) = platform.pids("starves")
    answer = platform.infer("starves", row(POISON))
    assert (answer.status_code, answer.json()["code"]) == (500, "execution_failed")
    assert "memory ran out; send fewer rows" in answer.json()["error"]
    assert first(platform.infer("starves", row(1))) == 1
    assert platform.pids("starves") == [pid]


def test_the_books_of_all_this_add_up(platform: RunningPlatform) -> None:
    result = platform.cli("bill", "verify", "--json")
    assert result.json["problems"] == [], result.json
