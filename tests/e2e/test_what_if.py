"""`serve explain --what-if` on real traffic: what it simulates with the settings as they are is what happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import StartPlatform
from tests.e2e.models import row, scripted

pytestmark = pytest.mark.e2e


def test_real_traffic_comes_out_as_it_was_and_a_longer_idle_time_saves_its_cold_starts(
    start: StartPlatform, tmp_path: Path
) -> None:
    platform = start()
    settings = ("--idle", "0.6s", "--concurrency", "1", "--max", "1", "--threads", "1")
    platform.deploy("-f", scripted(tmp_path / "model", run_s=0.02), "--name", "held", *settings)
    platform.wait_for_zero()
    for _ in range(3):
        for _ in range(2):  # the second finds the replica that the first has started
            assert platform.infer("held", row(1)).status_code == 200
        platform.wait_for_zero()
    answer = platform.cli("explain", "held", "--what-if", "idle=1h", "--json").json
    recorded, as_it_was, what_if = (answer[side] for side in ("recorded", "as_it_was", "what_if"))
    assert recorded["requests"] == as_it_was["requests"] == what_if["requests"] == 6
    assert (recorded["starts"], recorded["cold_starts"]) == (4, 3), "publishing's, and one for each pair of calls"
    assert (as_it_was["starts"], as_it_was["cold_starts"]) == (4, 3)
    assert (what_if["starts"], what_if["cold_starts"]) == (1, 0)
    assert as_it_was["busy_cost_nano"] == pytest.approx(recorded["busy_cost_nano"], rel=0.02)
    billed = next(line for line in platform.get("/bill?by=revision")["rows"] if line["group"] == "held-r1")
    assert recorded["cost_nano"] == pytest.approx(billed["cost_nano"], abs=2)
    shown = platform.cli("explain", "held", "--what-if", "idle=1h")
    assert "3 of 6 would have waited" in shown.out
    refused = platform.cli("explain", "held", "--what-if", "engine=python")
    assert refused.exit_code != 0
    assert "'engine' cannot be simulated" in refused.err
