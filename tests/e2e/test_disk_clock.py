"""A wall clock that is stepped by years while the platform runs: what lasts, lasts as long as it did."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.e2e.conftest import StartPlatform
from tests.e2e.platforms import DIGITS, RunningPlatform
from tests.e2e.requests import THREE, labels

pytestmark = pytest.mark.e2e
DAY_S = 86_400
_STEPPED = """
import pathlib, time
from serve.core.clock import SystemClock

step_file = pathlib.Path({path!r})


def wall_ns():
    return time.time_ns() + int(step_file.read_text()) * 1_000_000_000


SystemClock.wall_ns = staticmethod(wall_ns)
"""


@pytest.fixture
def step_file(tmp_path: Path) -> Path:
    """Seconds that the wall clock of every process is ahead; there is no other way to step one process's clock."""
    path = tmp_path / "step"
    path.write_text("0")
    (tmp_path / "sitecustomize.py").write_text(_STEPPED.format(path=str(path)))
    return path


def records(platform: RunningPlatform, ids: list[str]) -> list[dict[str, int]]:
    return [platform.get(f"/requests/{request_id}") for request_id in ids]


def test_durations_idle_times_bills_and_the_token_do_not_follow_a_wall_clock_that_is_stepped(
    start: StartPlatform, step_file: Path
) -> None:
    platform = start(PYTHONPATH=str(step_file.parent), SERVE_CHECKPOINT_INTERVAL="0.2")
    token = platform.home.token()
    platform.deploy(DIGITS / "model.onnx", "--idle", "0.3s")
    ids: list[str] = []
    for step_s in (-3 * 365 * DAY_S, 7200, 10 * 365 * DAY_S):
        step_file.write_text(str(step_s))
        answers = [platform.infer("digits", THREE) for _ in range(3)]
        assert [labels(answer.json()) for answer in answers] == [[3]] * 3
        ids += [answer.headers["x-serve-request-id"] for answer in answers]
        began = time.monotonic()
        platform.wait_for_zero()
        assert time.monotonic() - began < 10, "the idle timeout is measured with a clock that nobody steps"
    found = records(platform, ids)
    assert all(0 <= record["busy_us"] < 10_000_000 and 0 <= record["queue_us"] < 20_000_000 for record in found)
    assert all(record["cold_us"] < 20_000_000 for record in found)
    seconds = [record["wall_ns"] // 10**9 for record in found]
    assert max(seconds) - min(seconds) > 12 * 365 * DAY_S, "people read what the clock said"
    everything = platform.api("GET", "/bill", params={"since": "1970-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z"})
    assert everything.status_code == 200, everything.text
    verified = platform.get("/bill/verify")
    assert verified["ok"], verified
    assert verified["notes"] == []
    step_file.write_text(str(-20 * 365 * DAY_S))
    assert platform.stop() == 0
    platform.start()
    assert platform.home.token() == token
    assert labels(platform.infer("digits", THREE).json()) == [3]
    assert records(platform, ids) == found
    assert platform.get("/bill/verify")["ok"]
