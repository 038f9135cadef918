"""Models that cannot be deployed: each is refused with a sentence, and what runs is as it was."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import StartPlatform
from tests.e2e.models import doubling, external, row, scripted
from tests.e2e.platforms import DIGITS, SERVE, Result, RunningPlatform
from tests.e2e.processes import wait_until
from tests.e2e.requests import THREE, labels

pytestmark = pytest.mark.e2e
MODEL = DIGITS / "model.onnx"


@pytest.fixture(autouse=True)
def the_running_revision_is_untouched(shared: RunningPlatform) -> Iterator[None]:
    before = shared.infer("digits", THREE).headers["x-serve-replica"]
    replicas = shared.replicas()
    yield
    answer = shared.infer("digits", THREE)
    assert (labels(answer.json()), answer.headers["x-serve-replica"]) == ([3], before)
    assert shared.replicas() == replicas
    assert [item["name"] for item in shared.get("/deployments")["deployments"]] == ["digits"]
    assert set(shared.processes()) == {"platform", "ledger", "zygote", "replica"}


def failed(result: Result, exit_code: int, *words: str, code: str | None = None) -> None:
    """Hold a command's failure to its contract: exit code, one sentence, nothing else on stdout."""
    assert result.exit_code == exit_code, result
    body = json.loads(result.out)
    assert set(body) >= {"error", "code"}
    assert "\n" not in body["error"].strip()
    for word in words:
        assert word in body["error"], body["error"]
    if code is not None:
        assert body["code"] == code, body


BAD_FILES: dict[str, tuple[Callable[[], bytes], str, list[str]]] = {
    "no ONNX": (lambda: b"GIF89a" + b"\0" * 100, "model_invalid", ["not an ONNX model", "again"]),
    "text": (lambda: b"hello\n", "model_invalid", ["not an ONNX model"]),
    "empty": (lambda: b"", "model_invalid", ["not an ONNX model"]),
    "truncated": (lambda: MODEL.read_bytes()[:-5000], "model_invalid", ["cut short"]),
    "unknown operator": (
        lambda: doubling(operator="Frobnicate").SerializeToString(),
        "model_unsupported",
        ["Frobnicate", "export"],
    ),
    "unknown domain": (
        lambda: doubling(operator="Frob", domain="com.example").SerializeToString(),
        "model_unsupported",
        ["Frob", "export"],
    ),
    "future opset": (lambda: doubling(opset=99).SerializeToString(), "model_unsupported", ["99", "export"]),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_is_no_model_we_can_run_exits_5_with_the_remedy(
    shared: RunningPlatform, tmp_path: Path, kind: str
) -> None:
    content, code, words = BAD_FILES[kind]
    (tmp_path / "model.onnx").write_bytes(content())
    failed(shared.cli("deploy", str(tmp_path / "model.onnx"), "--name", "digits", "--json"), 5, *words, code=code)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "missing.bin", "sub/../../weights.bin"])
def test_weights_that_are_missing_or_outside_the_folder_exit_5(
    shared: RunningPlatform, tmp_path: Path, location: str
) -> None:
    path = external(tmp_path / "model", location, write=False)
    (tmp_path / "weights.bin").write_bytes(b"\0" * 64 * 64 * 4)
    failed(shared.cli("deploy", str(path), "--name", "digits", "--json"), 5, location)


def test_weights_that_are_links_out_of_the_folder_exit_5(shared: RunningPlatform, tmp_path: Path) -> None:
    path = external(tmp_path / "model", "weights.bin", write=False)
    (tmp_path / "model" / "weights.bin").symlink_to("/etc/hostname")
    failed(shared.cli("deploy", str(path), "--name", "digits", "--json"), 5, "weights.bin", "link")


def test_a_folder_without_one_model_is_a_usage_error(shared: RunningPlatform, tmp_path: Path) -> None:
    failed(shared.cli("deploy", str(tmp_path), "--json"), 2, "no *.onnx")
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes(MODEL.read_bytes())
    failed(shared.cli("deploy", str(tmp_path), "--json"), 2, "a.onnx", "b.onnx", "name one")
    failed(shared.cli("deploy", str(tmp_path / "c.onnx"), "--json"), 2, "c.onnx")


@pytest.mark.parametrize("name", ["stats", "-x", "a b", "a/b", "x" * 64, "ü"])
def test_a_name_that_cannot_be_is_refused(shared: RunningPlatform, name: str) -> None:
    result = shared.cli("deploy", str(MODEL), f"--name={name}", "--json")
    assert result.exit_code in (2, 5)
    failed(result, result.exit_code, name)


def test_a_sample_that_the_model_refuses_exits_5(shared: RunningPlatform, tmp_path: Path) -> None:
    sample = tmp_path / "sample.json"
    sample.write_text(json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}))
    result = shared.cli("deploy", str(MODEL), "--name", "digits", "--idle", "9m", "--sample", str(sample), "--json")
    failed(result, 5, "sample", code="sample_failed")
    sample.write_text("{")
    failed(shared.cli("deploy", str(MODEL), "--sample", str(sample), "--json"), 2, "sample.json")


def test_settings_that_cannot_be_are_refused_with_their_names(shared: RunningPlatform, tmp_path: Path) -> None:
    failed(shared.cli("deploy", str(MODEL), "--min", "3", "--max", "2", "--json"), 2, "max", code="invalid_spec")
    settings = tmp_path / "serve.yaml"
    settings.write_text("idel: 5s\n")
    result = shared.cli("deploy", str(MODEL), "-f", str(settings), "--json")
    assert result.exit_code in (2, 5)
    failed(result, result.exit_code, "idel")


def test_a_load_error_of_the_engine_arrives_whole(shared: RunningPlatform, tmp_path: Path) -> None:
    settings = scripted(tmp_path, load_error={"code": "model_invalid", "message": "the weights are upside down"})
    failed(shared.cli("deploy", "-f", settings, "--name", "digits", "--json"), 5, "the weights are upside down")


def test_a_model_that_dies_while_it_loads_exits_5_and_says_how(shared: RunningPlatform, tmp_path: Path) -> None:
    settings = scripted(tmp_path, load_exit=9)
    failed(shared.cli("deploy", "-f", settings, "--name", "digits", "--json"), 5, "9")


def test_a_model_that_loads_too_long_exits_5_and_names_the_setting(shared: RunningPlatform, tmp_path: Path) -> None:
    settings = scripted(tmp_path, load_s=30)
    result = shared.cli("deploy", "-f", settings, "--name", "digits", "--start-timeout", "1s", "--json")
    failed(result, 5, "start_timeout")


# The API as a hostile or hasty client calls it ------------------------------------------------------------------------


def announce(name: str, content: bytes, sha256: str | None = None) -> dict[str, Any]:
    digest = sha256 or hashlib.sha256(content).hexdigest()
    files = [{"path": "model.onnx", "size": len(content), "sha256": digest}]
    return {"spec": {"name": name}, "model": {"file": "model.onnx", "files": files}}


def test_a_file_that_changed_since_it_was_announced_is_refused(shared: RunningPlatform) -> None:
    content = MODEL.read_bytes() + b"\n"
    digest = hashlib.sha256(content).hexdigest()
    answer = shared.api("POST", "/deployments", json=announce("other", content))
    assert (answer.status_code, answer.json()["code"], answer.json()["files"]) == (422, "files_missing", ["model.onnx"])
    changed = content[:-1] + b"x"
    answer = shared.api("PUT", f"/blobs/{digest}", content=changed)
    assert (answer.status_code, answer.json()["code"]) == (422, "source_changed"), answer.text
    assert shared.api("POST", "/deployments", json=announce("other", content)).status_code == 422


@pytest.mark.parametrize("path", ["../model.onnx", "/model.onnx", "a/../../b", "", "a\0b"])
def test_paths_that_leave_the_folder_cannot_be_announced(shared: RunningPlatform, path: str) -> None:
    body = announce("other", MODEL.read_bytes())
    body["model"]["files"][0]["path"] = body["model"]["file"] = path
    answer = shared.api("POST", "/deployments", json=body)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["code"] in {"invalid_spec", "model_invalid", "bad_request"}


@pytest.mark.parametrize("url", ["file:///etc/passwd", "/etc/passwd", "ftp://x/y", "http://127.0.0.1:1/model.onnx"])
def test_the_platform_never_reads_its_own_disk_for_a_caller(shared: RunningPlatform, url: str) -> None:
    answer = shared.api("POST", "/deployments", json={"spec": {"name": "other"}, "model": {"url": url}})
    last = json.loads(answer.text.splitlines()[-1])
    assert last.get("event", "failed") == "failed"
    assert last["code"] in {"invalid_spec", "source_unreachable"}, last


# Limits, each with a platform of its own ------------------------------------------------------------------------------


def test_a_model_larger_than_the_store_is_refused_before_it_is_sent(start: StartPlatform, tmp_path: Path) -> None:
    platform = start(SERVE_STORE_BUDGET="30000")
    platform.deploy(MODEL)
    big = external(tmp_path / "model", "weights.bin")
    failed(platform.cli("deploy", str(big), "--name", "digits", "--json"), 5, "SERVE_STORE_BUDGET")
    assert labels(platform.infer("digits", THREE).json()) == [3]


def test_models_that_failed_make_room_for_one_that_does_not(start: StartPlatform, tmp_path: Path) -> None:
    platform = start(SERVE_STORE_BUDGET="60000")
    for broken in (b"1", b"2", b"3", b"4"):
        (tmp_path / "model.onnx").write_bytes(broken * 15_000)
        failed(platform.cli("deploy", str(tmp_path / "model.onnx"), "--name", "digits", "--json"), 5)
    platform.deploy(MODEL)
    assert platform.get("/platform")["store"]["used_bytes"] <= 60_000
    assert labels(platform.infer("digits", THREE).json()) == [3]


def test_a_full_disk_is_said_and_what_runs_goes_on(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        with RunningPlatform(disk) as platform:
            platform.deploy(MODEL)
            (tmp_path / "model.onnx").write_bytes(b"\1" * (8 << 20))
            failed(platform.cli("deploy", str(tmp_path / "model.onnx"), "--name", "digits", "--json"), 5, "disk")
            assert labels(platform.infer("digits", THREE).json()) == [3]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_model_that_needs_more_memory_than_the_budget_is_refused(start: StartPlatform, tmp_path: Path) -> None:
    platform = start(SERVE_MEMORY_BUDGET="200MiB")
    platform.deploy(MODEL)
    settings = scripted(tmp_path, memory_mib=400)
    failed(platform.cli("deploy", "-f", settings, "--name", "digits", "--json"), 5, "SERVE_MEMORY_BUDGET")
    assert labels(platform.infer("digits", THREE).json()) == [3]


def test_weights_beside_the_model_are_uploaded_and_served(start: StartPlatform, tmp_path: Path) -> None:
    platform = start()
    receipt = platform.deploy(external(tmp_path / "apart", "weights/w.bin"))
    assert receipt["name"] == "apart"
    assert receipt["verified"] is True
    body = {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0] * 63 + [1]}]}
    answer = platform.infer("apart", body).json()
    assert answer["outputs"][0]["data"] == [float(63 * 64 + column) for column in range(64)]


def test_a_folder_with_one_model_is_that_model(start: StartPlatform, tmp_path: Path) -> None:
    (tmp_path / "twice").mkdir()
    (tmp_path / "twice" / "whatever.onnx").write_bytes(doubling().SerializeToString())
    platform = start()
    assert platform.deploy(tmp_path / "twice")["name"] == "whatever"


def test_a_name_is_one_publish_at_a_time_and_callers_hear_of_it(start: StartPlatform, tmp_path: Path) -> None:
    platform = start()
    slow = scripted(tmp_path, load_s=3)
    with subprocess.Popen(
        [SERVE, "deploy", "-f", slow, "--name", "slow", "--json"],
        env=platform.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as first:
        wait_until(platform.replicas, "the first publish starts its replica")
        failed(platform.cli("deploy", "-f", slow, "--name", "slow", "--json"), 5, "slow", code="conflict")
        answer = platform.infer("slow", row(1))
        assert (answer.status_code, answer.json()["code"]) == (503, "publishing")
        assert int(answer.headers["retry-after"]) >= 1
        assert platform.http("GET", "/v2/models/slow/ready").status_code == 503
        assert first.wait(30) == 0
    assert platform.infer("slow", row(1)).status_code == 200


@pytest.mark.parametrize("engine", ["scripted", "nonsense"])
def test_an_engine_for_tests_or_an_unknown_one_is_refused_before_anything_starts(
    start: StartPlatform, tmp_path: Path, engine: str
) -> None:
    platform = start(SERVE_TEST_ENGINES="0")
    (tmp_path / "model.json").write_text("{}")
    result = platform.cli("deploy", str(tmp_path / "model.json"), "--engine", engine, "--name", "played")
    assert result.exit_code != 0
    assert f"'{engine}' cannot be deployed here; known are onnx" in result.err
    assert platform.get("/deployments")["deployments"] == []
