"""What one person does with the platform: deploy, call from zero, back to zero, read the bill."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.e2e.platforms import DIGITS, Result, RunningPlatform
from tests.e2e.processes import wait_until
from tests.e2e.requests import READ, REQUESTS, THREE, binary, binary_labels, labels

pytestmark = pytest.mark.e2e

PHASES = ["queue", "spawn", "map", "load", "infer"]


@dataclass(frozen=True)
class Story:
    """What happened, in order."""

    platform: RunningPlatform
    deployed: Result
    pid_at_deploy: int
    processes_at_zero: dict[str, list[int]]
    status_at_zero: dict[str, Any]
    from_zero: httpx.Response
    pid_from_zero: int
    json_answers: list[httpx.Response]
    binary_answers: list[httpx.Response]
    predicted: Result


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with RunningPlatform(tmp_path_factory.mktemp("story")) as platform:
        deployed = platform.cli("deploy", str(DIGITS / "model.onnx"), "--idle", "2s", "--label", "team=vision")
        assert deployed.exit_code == 0, deployed
        (pid_at_deploy,) = platform.replicas()
        platform.wait_for_zero()
        processes_at_zero = platform.processes()
        status_at_zero = platform.get("/deployments/digits")
        from_zero = platform.infer("digits", THREE)
        (pid_from_zero,) = platform.replicas()
        assert platform.pids("digits") == [pid_from_zero]
        json_answers = [platform.infer("digits", request) for request in REQUESTS]
        binary_answers = []
        for request in REQUESTS:
            body, headers = binary(request)
            binary_answers.append(platform.infer("digits", body, **headers))
        predicted = platform.cli("predict", "digits", "--input", str(DIGITS / "three.json"))
        platform.wait_for_zero()
        yield Story(
            platform,
            deployed,
            pid_at_deploy,
            processes_at_zero,
            status_at_zero,
            from_zero,
            pid_from_zero,
            json_answers,
            binary_answers,
            predicted,
        )


def test_the_receipt_tells_endpoint_cold_start_latency_memory_cost_and_a_call(story: Story) -> None:
    text = story.deployed.out
    for word in (
        "endpoint",
        "cold start",
        "spawn",
        "load",
        "infer",
        "warm",
        "memory",
        "idle hour",
        "1000 calls",
        "curl",
    ):
        assert word in text, word
    assert f"{story.platform.info.url}/v2/models/digits/infer" in text


def test_the_same_deploy_again_is_unchanged_and_has_the_receipt_as_json(story: Story) -> None:
    receipt = story.platform.deploy(DIGITS / "model.onnx", "--idle", "2s", "--label", "team=vision")
    assert receipt["unchanged"] is True
    assert (receipt["name"], receipt["revision"], receipt["verified"]) == ("digits", 1, True)
    assert set(receipt["cold_start"]["phases"]) >= {"spawn", "map", "load", "infer"}
    assert receipt["cold_start"]["total_ms"] > 0
    assert receipt["warm_ms"]["n"] >= 1
    assert receipt["memory_bytes"] > 1 << 20
    assert set(receipt["cost"]) == {"currency", "per_1000_calls", "per_idle_hour", "at_zero"}
    assert receipt["inputs"] == [{"name": "pixels", "datatype": "FP32", "shape": [-1, 64]}]
    assert not story.platform.replicas()


def test_the_curl_of_the_receipt_is_a_valid_call(story: Story) -> None:
    line = next(line.strip() for line in story.deployed.out.splitlines() if line.strip().startswith("curl "))
    body = line.split("--data-binary ")[1].strip("'")
    assert story.platform.infer("digits", body.encode()).status_code == 200


def test_at_zero_no_process_but_platform_ledger_and_zygote_exists(story: Story) -> None:
    assert {role: len(pids) for role, pids in story.processes_at_zero.items()} == {
        "platform": 1,
        "ledger": 1,
        "zygote": 1,
    }
    assert story.status_at_zero["state"] == "cold"
    assert story.status_at_zero["replicas"] == []


def test_a_request_from_zero_is_answered_by_a_new_process_and_says_where_the_time_went(story: Story) -> None:
    headers = story.from_zero.headers
    assert story.from_zero.status_code == 200
    assert labels(story.from_zero.json()) == [3]
    assert story.pid_from_zero != story.pid_at_deploy
    assert headers["x-serve-cold-start"] == "1"
    assert headers["x-serve-replica"].startswith("digits-r1-")
    assert headers["x-serve-revision"] == "1"
    assert headers["x-serve-cost"].endswith(" USD")
    assert headers["x-serve-request-id"]
    timing = dict(part.split(";dur=") for part in headers["server-timing"].split(", "))
    assert list(timing) == PHASES
    assert all(float(duration) >= 0 for duration in timing.values())


def test_every_example_but_the_one_misread_gets_its_true_label_as_json_and_as_binary_from_one_replica(
    story: Story,
) -> None:
    assert len(REQUESTS) > 20
    assert [labels(answer.json()) for answer in story.json_answers] == READ
    for answer, expected in zip(story.binary_answers, READ, strict=True):
        assert answer.headers["content-type"] == "application/octet-stream"
        assert binary_labels(answer.content, int(answer.headers["inference-header-content-length"])) == expected
    answers = story.json_answers + story.binary_answers
    assert {answer.headers["x-serve-cold-start"] for answer in answers} == {"0"}
    assert {answer.headers["x-serve-replica"] for answer in answers} == {story.from_zero.headers["x-serve-replica"]}
    assert len({answer.headers["x-serve-request-id"] for answer in answers}) == len(answers)


def test_predict_says_three(story: Story) -> None:
    assert story.predicted.exit_code == 0
    assert story.predicted.out.splitlines()[0].split() == ["label", "INT64", "[1]", "3"]
    assert "USD" in story.predicted.err


def test_the_request_record_is_in_the_ledger_with_the_cost_of_its_header(story: Story) -> None:
    record = story.platform.get(f"/requests/{story.from_zero.headers['x-serve-request-id']}")
    assert story.platform.api("GET", "/requests/nobody-1").status_code == 404
    cost, _ = story.from_zero.headers["x-serve-cost"].split()
    assert record["cost_nano"] == round(float(cost) * 1e9)


@pytest.mark.parametrize("group", ["deployment", "revision", "label:team", "hour", "day"])
def test_the_rows_of_the_bill_sum_to_its_total(story: Story, group: str) -> None:
    result = story.platform.cli("bill", "--by", group, "--json")
    assert result.exit_code == 0, result
    rows, total = result.json["rows"], result.json["total"]
    assert rows
    for key in ("requests", "cold_starts", "cost_nano", "cold_cost_nano", "billed_cost_nano", "idle_cost_nano"):
        assert sum(row[key] for row in rows) == total[key], key
    assert total["requests"] >= 2 * len(REQUESTS) + 2
    assert total["cost_nano"] > 0
    if group == "label:team":
        assert [row["group"] for row in rows] == ["vision"]


def test_the_bill_is_also_csv_with_the_same_sum(story: Story) -> None:
    wait_until(lambda: not story.platform.pids("digits"), "nothing more is spent")
    result = story.platform.cli("bill", "--csv")
    rows = list(csv.DictReader(io.StringIO(result.out)))
    total = story.platform.cli("bill", "--json").json["total"]
    assert sum(int(row["cost_nano"]) for row in rows) == total["cost_nano"]


def test_the_bill_proves_itself(story: Story) -> None:
    result = story.platform.cli("bill", "verify", "--json")
    assert result.exit_code == 0
    assert result.json["ok"] is True, result.json
    assert result.json["problems"] == []
    assert result.json["lives"] >= 2


def test_explain_tells_each_step_with_its_reason(story: Story) -> None:
    decisions = story.platform.cli("explain", "digits", "--json").json["decisions"]
    steps = [(decision["from"], decision["to"]) for decision in decisions[:3]]
    assert steps == [(0, 1), (1, 0), (0, 1)]
    assert "publish" in decisions[0]["reason"]
    assert "idle" in decisions[1]["reason"]
    assert "wait" in decisions[2]["reason"]


def test_history_logs_status_and_ls_know_the_deployment(story: Story) -> None:
    (revision,) = story.platform.cli("history", "digits", "--json").json["revisions"]
    assert (revision["revision"], revision["current"], revision["verified"]) == (1, True, True)
    status = story.platform.cli("status", "digits", "--json").json
    assert set(status) >= {"name", "state", "traffic", "replicas", "queue", "cold_start_ms"}
    assert status["cold_start_ms"]["p50"] > 0
    assert [item["name"] for item in story.platform.cli("ls", "--json").json["deployments"]] == ["digits"]
    assert story.platform.cli("logs", "digits").exit_code == 0


@pytest.mark.parametrize("command", ["status", "rollback"])
def test_an_unknown_deployment_exits_3_with_a_sentence(story: Story, command: str) -> None:
    result = story.platform.cli(command, "nobody")
    assert result.exit_code == 3, result
    assert "nobody" in result.err
