"""Revisions of a deployment: rollover, rollback, old versions, deletion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import httpx
import pytest

from tests.e2e.models import row, scripted
from tests.e2e.platforms import DIGITS, RunningPlatform
from tests.e2e.processes import wait_until
from tests.e2e.requests import THREE
from tests.e2e.traffic import trickle

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    with RunningPlatform(tmp_path_factory.mktemp("lifecycle")) as platform:
        yield platform


def answered(answer: httpx.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    values: list[float] = answer.json()["outputs"][0]["data"]
    return values


def test_a_second_revision_takes_over_under_traffic_without_one_error(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    platform.deploy("-f", scripted(tmp_path, factor=1), "--name", "over", "--idle", "1s")
    with trickle(platform, "over", row(1)) as traffic:
        traffic.wait_for(10)
        receipt = platform.deploy("-f", scripted(tmp_path, factor=10), "--name", "over", "--idle", "1s")
        traffic.wait_for(20)
        result = platform.cli("rollback", "over", "--json")
        assert result.exit_code == 0, result
        traffic.wait_for(20)
    assert receipt["revision"] == 2
    assert traffic.errors == []
    assert traffic.statuses == {200}
    by_revision = {(answer.headers["x-serve-revision"], answered(answer)[0]) for answer in traffic.answers}
    assert by_revision == {("1", 1.0), ("2", 10.0)}
    order = [revision for at, revision in enumerate(traffic.revisions) if traffic.revisions[at - 1 : at] != [revision]]
    assert order[0] == "1"
    assert traffic.revisions[-1] == "1"
    platform.wait_for_zero()


def test_the_same_content_and_settings_again_are_unchanged(platform: RunningPlatform, tmp_path: Path) -> None:
    settings = scripted(tmp_path, factor=3)
    assert platform.deploy("-f", settings, "--name", "same", "--idle", "1s")["revision"] == 1
    result = platform.cli("deploy", "-f", settings, "--name", "same", "--idle", "1s")
    assert result.exit_code == 0
    assert "nothing to do" in result.err
    assert len(platform.get("/deployments/same/history")["revisions"]) == 1
    assert platform.deploy("-f", settings, "--name", "same", "--idle", "2s")["revision"] == 2


def test_a_cold_old_revision_is_woken_by_its_version(platform: RunningPlatform, tmp_path: Path) -> None:
    platform.deploy("-f", scripted(tmp_path, factor=1), "--name", "old", "--idle", "1s")
    platform.deploy("-f", scripted(tmp_path, factor=10), "--name", "old", "--idle", "1s")
    platform.wait_for_zero()
    old = platform.infer("old/versions/1", row(5))
    assert (answered(old)[0], old.headers["x-serve-revision"], old.headers["x-serve-cold-start"]) == (5.0, "1", "1")
    new = platform.infer("old", row(5))
    assert (answered(new)[0], new.headers["x-serve-revision"], new.headers["x-serve-cold-start"]) == (50.0, "2", "1")
    assert platform.http("GET", "/v2/models/old").json()["versions"] == ["1", "2"]
    assert platform.infer("old/versions/3", row(5)).status_code == 404
    result = platform.cli("predict", "old", "--revision", "1", "--input", "-", stdin=str(row(5)).replace("'", '"'))
    assert "5" in result.out
    platform.wait_for_zero()


def test_rollback_names_what_it_can_go_back_to(platform: RunningPlatform, tmp_path: Path) -> None:
    platform.deploy("-f", scripted(tmp_path), "--name", "single", "--idle", "1s")
    assert platform.cli("rollback", "single").exit_code == 3
    assert platform.cli("rollback", "single", "7").exit_code == 3


def test_deleting_lets_requests_inside_finish_and_refuses_new_ones(platform: RunningPlatform, tmp_path: Path) -> None:
    platform.deploy("-f", scripted(tmp_path, run_s=0.7), "--name", "gone", "--threads", "1")
    inside: list[httpx.Response] = []
    caller = Thread(target=lambda: inside.append(platform.infer("gone", row(1))))
    caller.start()
    wait_until(lambda: platform.in_flight("gone") == 1, "the request is inside")
    assert platform.cli("delete", "gone").exit_code == 2, "no question without a terminal"
    assert platform.cli("delete", "gone", "--yes").exit_code == 0
    caller.join(20)
    assert [answer.status_code for answer in inside] == [200]
    assert platform.infer("gone", row(1)).status_code == 404
    assert platform.cli("status", "gone").exit_code == 3
    platform.wait_for_zero()
    bill = platform.get("/bill")
    assert "gone" in [line["group"] for line in bill["rows"]], "its bill stays"


def test_min_keeps_replicas_and_none_is_left_when_it_is_given_up(platform: RunningPlatform, tmp_path: Path) -> None:
    settings = scripted(tmp_path)
    platform.deploy("-f", settings, "--name", "kept", "--min", "2", "--idle", "0s")
    wait_until(lambda: len(platform.replicas()) == 2, "two replicas run")
    platform.deploy("-f", settings, "--name", "kept", "--min", "0", "--idle", "1s")
    platform.wait_for_zero()


def test_idle_times_of_flag_file_and_api_mean_the_same(platform: RunningPlatform) -> None:
    platform.deploy(DIGITS / "model.onnx", "--name", "flag", "--idle", "1m30s")
    assert platform.get("/deployments/flag")["spec"]["idle"] == 90
    assert platform.infer("flag", THREE).status_code == 200
    assert platform.cli("delete", "flag", "--yes").exit_code == 0
