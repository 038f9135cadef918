"""How the platform starts, who may call what, and what it tells of itself."""

from __future__ import annotations

import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import StartPlatform
from tests.e2e.platforms import DIGITS, SERVE, RunningPlatform
from tests.e2e.processes import wait_until
from tests.e2e.requests import THREE

pytestmark = pytest.mark.e2e


def ends(folder: Path, *flags: str, **environment: str) -> str:
    """Return the one sentence with which a platform refuses to start."""
    (said,) = ends_with(folder, *flags, **environment)
    return said


def ends_with(folder: Path, *flags: str, **environment: str) -> list[str]:
    """Return the lines that a platform leaves which cannot start and leaves nothing else behind."""
    platform = RunningPlatform(folder, *flags, **environment)
    process = platform.launch()
    try:
        assert process.wait(20) == 1, platform.log()
    finally:
        platform.__exit__(None, None, None)
    return platform.log().strip().splitlines()


def test_a_busy_port_is_one_sentence_with_the_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = ends(tmp_path, "--port", str(port))
        assert str(port) in said
        assert "--port" in said


def test_a_second_platform_in_one_home_names_the_first(shared: RunningPlatform) -> None:
    command = [*shared.command, "--port", "0"]
    second = subprocess.run(command, env=shared.environment, capture_output=True, text=True, timeout=30, check=False)
    assert second.returncode == 1
    (line,) = second.stderr.strip().splitlines()
    assert shared.info.url in line
    assert "serve down" in line
    up = shared.cli("up", "--detach", "--port", "0")
    assert up.exit_code == 0, "`serve up` where one runs says so and is content"
    assert shared.info.url in up.out + up.err
    assert shared.http("GET", "/v2/health/ready").status_code == 200


def test_a_home_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    said = ends(tmp_path)
    assert "cannot be written" in said
    assert "--home" in said


def test_a_home_on_a_read_only_disk_is_one_sentence(tmp_path: Path) -> None:
    disk = tmp_path / "home"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a read-only disk here")
    try:
        said = ends(tmp_path)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    assert "Read-only" in said
    assert "--home" in said


def test_a_damaged_registry_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "registry.db").write_bytes(b"garbage" * 1000)
    (sentence,) = [line for line in ends_with(tmp_path) if not line.startswith("{")]
    assert "registry.db is damaged" in sentence
    assert "restore" in sentence


@pytest.mark.parametrize(
    ("setting", "value"),
    [("SERVE_DRIVER", "podman"), ("SERVE_BODY_LIMIT", "much"), ("SERVE_LOG_LEVEL", "LOUD"), ("SERVE_HOST", "0.0.0.0")],
)
def test_a_setting_that_cannot_be_is_named(tmp_path: Path, setting: str, value: str) -> None:
    said = ends(tmp_path, **{setting: value})
    assert (value if setting == "SERVE_HOST" else setting) in said


def test_home_and_token_are_private(shared: RunningPlatform) -> None:
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert mode(shared.home.path) == 0o700
    assert mode(shared.home.token_file) == 0o600
    assert mode(shared.home.info_file) == 0o600
    assert len(shared.home.token() or "") >= 32


def test_the_control_api_wants_the_token_and_the_data_plane_does_not(shared: RunningPlatform) -> None:
    for token in ("wrong", "Bearer", (shared.home.token() or "")[:-1]):
        answer = shared.api("GET", "/deployments", token=token)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert "token" in answer.json()["error"]
    bare = shared.http("GET", "/api/v1/deployments")
    assert bare.status_code == 401
    assert bare.headers["www-authenticate"].startswith("Bearer")
    assert shared.infer("digits", THREE).status_code == 200
    result = shared.cli("ls", "--json", SERVE_TOKEN="wrong")
    assert (result.exit_code, result.json["code"]) == (1, "unauthorized")
    assert (shared.home.token() or "") not in shared.log()


def test_a_foreign_host_header_is_403(shared: RunningPlatform) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        answer = shared.api("GET", "/deployments", headers={"host": host})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), host
    for host in ("localhost", "127.0.0.1:1", "[::1]:80"):
        assert shared.api("GET", "/deployments", headers={"host": host}).status_code == 200, host


def test_the_admin_port_takes_api_and_metrics_away_from_the_callers_port(start: StartPlatform) -> None:
    platform = start("--admin-port", "0")
    info = platform.info
    assert info.url != info.admin_url
    platform.deploy(DIGITS / "model.onnx")
    assert platform.infer("digits", THREE).status_code == 200
    for path in ("/api/v1/deployments", "/metrics"):
        answer = platform.http("GET", path)
        assert (answer.status_code, "there are /v2;" in answer.json()["error"]) == (404, True)
    assert platform.api("GET", "/deployments").status_code == 200
    assert platform.admin("GET", "/metrics").status_code == 200
    assert platform.admin("GET", "/v2/health/live").status_code == 404
    predicted = platform.cli("predict", "digits", "--input", str(DIGITS / "three.json"))
    assert predicted.exit_code == 0


def metrics(platform: RunningPlatform) -> dict[str, float]:
    answer = platform.http("GET", "/metrics")
    assert answer.status_code == 200
    families = text_string_to_metric_families(answer.text)
    return {
        sample.name + "".join(f"{{{key}={value}}}" for key, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_parse_and_move_with_what_happens(shared: RunningPlatform) -> None:
    before = metrics(shared)
    for _ in range(3):
        assert shared.infer("digits", THREE).status_code == 200
    assert shared.infer("digits", {}).status_code == 400
    assert shared.infer("nobody", THREE).status_code == 404
    after = metrics(shared)

    def moved(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert moved("serve_requests_total{deployment=digits}{status=2xx}") == 3
    assert moved("serve_requests_total{deployment=digits}{status=4xx}") == 1
    assert moved("serve_refusals_total{code=unknown_model}") == 1
    assert moved("serve_request_seconds_count{cold=0}") == 4
    assert moved("serve_journal_records_total") >= 4
    assert after["serve_deployments{state=ready}"] == 1
    assert after["serve_reserved_memory_bytes"] > 0
    assert after["serve_store_bytes"] > 0
    assert not [name for name in after if "nobody" in name], "callers make no series"


def test_metrics_are_only_read(shared: RunningPlatform) -> None:
    answer = shared.http("POST", "/metrics")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


def test_api_documents_itself(shared: RunningPlatform) -> None:
    document = shared.get("/openapi.json")
    assert document["openapi"].startswith("3.1")
    assert "/api/v1/deployments" in document["paths"]
    assert shared.get("/schema")["properties"]["idle"]
    answer = shared.api("GET", "/nothing")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    answer = shared.api("PUT", "/deployments")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
    for body in (b"", b"{", b"[]", b'{"spec": 1}', b"[" * 100_000):
        answer = shared.api("POST", "/deployments", content=body)
        assert answer.status_code in (400, 422), answer.text
        assert answer.json()["error"]


def test_deploy_starts_a_platform_where_none_runs_and_down_ends_it(tmp_path: Path) -> None:
    with RunningPlatform(tmp_path).unstarted() as platform:
        assert platform.cli("ls").exit_code == 4
        result = platform.cli("deploy", str(DIGITS / "model.onnx"), "--json", SERVE_PORT="0")
        assert result.exit_code == 0, result
        assert platform.infer("digits", THREE).status_code == 200
        assert platform.cli("down").exit_code == 0
        assert platform.processes() == {}
        assert platform.cli("down").exit_code == 0
        assert platform.cli("predict", "digits", "--input", str(DIGITS / "three.json")).exit_code == 4


def test_up_in_the_foreground_ends_with_ctrl_c(tmp_path: Path) -> None:
    with RunningPlatform(tmp_path).unstarted() as platform:
        with subprocess.Popen(
            [SERVE, "up", "--port", "0"], env=platform.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as up:
            wait_until(lambda: platform.home.read_info() is not None, "it is up")
            up.send_signal(signal.SIGINT)
            up.communicate(timeout=30)
        assert up.returncode in (0, 130)
        wait_until(lambda: not platform.processes(), "everything is gone")
