"""The platform itself is killed, told twice to stop, or runs out of memory: nothing is left, nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import StartPlatform
from tests.e2e.models import row, scripted
from tests.e2e.platforms import SERVE, RunningPlatform
from tests.e2e.processes import wait_until
from tests.e2e.traffic import trickle

pytestmark = pytest.mark.e2e
_MIB = 1 << 20


def verified(platform: RunningPlatform) -> None:
    answer = platform.get("/bill/verify")
    assert answer["ok"] is True, answer
    assert answer["problems"] == []


def names(platform: RunningPlatform) -> list[str]:
    return [item["name"] for item in platform.get("/deployments")["deployments"]]


def deploying(platform: RunningPlatform, settings: str, name: str) -> subprocess.Popen[bytes]:
    """Begin a deploy that the test will cut off."""
    return subprocess.Popen(
        [SERVE, "deploy", "-f", settings, "--name", name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=platform.folder,
        env=platform.environment,
    )


def test_kill_9_at_the_worst_moment_leaves_no_process_no_half_deployment_and_closed_books(
    start: StartPlatform, tmp_path: Path
) -> None:
    """One replica serves, one is stopped, one hangs in its load, one revision is being published."""
    platform = start(SERVE_CHECKPOINT_INTERVAL="0.5")
    cause = tmp_path / "cause"
    platform.deploy("-f", scripted(tmp_path / "a", factor=2), "--name", "serves", "--min", "1")
    platform.deploy("-f", scripted(tmp_path / "b"), "--name", "stopped")
    platform.deploy("-f", scripted(tmp_path / "c", override=str(cause)), "--name", "loads", "--idle", "0s")
    os.kill(platform.pids("stopped")[0], signal.SIGSTOP)
    wait_until(lambda: not platform.pids("loads"), "it is at zero")
    cause.write_text('{"load_s": 600}')
    half = scripted(tmp_path / "d", load_s=600)
    publishing = deploying(platform, half, "half")
    over = deploying(platform, scripted(tmp_path / "e", factor=3, load_s=600), "serves")
    with ThreadPoolExecutor(1) as callers, trickle(platform, "serves", row(1)) as traffic:
        waking = callers.submit(platform.infer, "loads", row(1))
        wait_until(lambda: len(platform.replicas()) == 5, "every replica has its process")
        traffic.wait_for(20)
        platform.crash()
        with pytest.raises(httpx.TransportError):
            waking.result()
        wait_until(lambda: set(platform.processes()) <= {"command"}, "everything ends with the platform")
    for command in (publishing, over):
        assert command.poll() != 0
        command.kill()
        command.wait()
    assert traffic.statuses == {200}
    cause.unlink()

    platform.start()
    assert set(names(platform)) == {"serves", "stopped", "loads"}
    assert platform.infer("half", row(1)).status_code == 404
    assert {platform.infer(name, row(1)).json()["outputs"][0]["data"][0] for name in names(platform)} == {1, 2}
    assert [line["revision"] for line in platform.get("/deployments/serves/history")["revisions"]] == [1]
    (tmp_path / "d" / "model.json").write_text("{}")
    assert platform.deploy("-f", half, "--name", "half")["revision"] == 2, "a number is used once"
    for answer in traffic.answers:
        platform.get(f"/requests/{answer.headers['x-serve-request-id']}")
    verified(platform)


def test_clients_that_retry_a_refused_connection_do_not_notice_a_restart(start: StartPlatform, tmp_path: Path) -> None:
    platform = start("--port", str(_free_port()))
    platform.deploy("-f", scripted(tmp_path, factor=2), "--name", "serves")
    with trickle(platform, "serves", row(1), pause_s=0.02) as traffic:
        traffic.wait_for(10)
        platform.process.terminate()
        assert platform.process.wait(20) == 0
        platform.start()
        traffic.wait_for(10)
    refused = [answer for answer in traffic.answers if answer.status_code != 200]
    assert {type(error) for error in traffic.errors} <= {httpx.ConnectError}, traffic.errors
    assert {(answer.status_code, answer.json()["code"]) for answer in refused} <= {(503, "draining")}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    verified(platform)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_platform_at_once_and_leaves_nothing(
    start: StartPlatform, tmp_path: Path, second: signal.Signals
) -> None:
    platform = start(SERVE_DRAIN_TIMEOUT="60")
    platform.deploy("-f", scripted(tmp_path, on_value={"13": "hang"}), "--name", "hangs")
    with ThreadPoolExecutor(1) as callers:
        inside = callers.submit(platform.infer, "hangs", row(13))
        wait_until(lambda: platform.in_flight("hangs") == 1, "it is inside")
        platform.process.terminate()
        wait_until(lambda: platform.home.read_info() is None, "it drains")
        platform.process.send_signal(second)
        assert platform.process.wait(5) == 128 + second
        with pytest.raises(httpx.TransportError):
            inside.result()
    wait_until(lambda: not platform.processes(), "nothing is left")
    assert platform.home.read_info() is None
    platform.start()
    verified(platform)


def test_what_does_not_finish_is_cut_off_within_the_drain_timeout(start: StartPlatform, tmp_path: Path) -> None:
    platform = start(SERVE_DRAIN_TIMEOUT="1.5")
    platform.deploy("-f", scripted(tmp_path, on_value={"13": "hang"}), "--name", "hangs")
    with ThreadPoolExecutor(1) as callers:
        inside = callers.submit(platform.infer, "hangs", row(13))
        wait_until(lambda: platform.in_flight("hangs") == 1, "it is inside")
        began_s = time.monotonic()
        assert platform.stop() == 0
        taken_s = time.monotonic() - began_s
        answer = inside.result()
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    assert platform.processes() == {}
    assert platform.home.read_info() is None
    assert taken_s < 2 * 1.5, "requests and replicas share one time to drain"


def test_zygote_and_ledger_killed_again_and_again_stop_nobody(start: StartPlatform, tmp_path: Path) -> None:
    platform = start()
    platform.deploy("-f", scripted(tmp_path / "a"), "--name", "serves")
    platform.deploy("-f", scripted(tmp_path / "b"), "--name", "wakes", "--idle", "0s")
    with trickle(platform, "serves", row(1)) as warm, trickle(platform, "wakes", row(2), threads=1) as cold:
        for _ in range(2):
            for role in ("zygote", "ledger"):
                for pid in platform.processes().get(role, []):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            warm.wait_for(20)
            cold.wait_for(5)
    assert warm.errors + cold.errors == []
    assert warm.statuses | cold.statuses == {200}
    wait_until(lambda: {"zygote", "ledger"} <= set(platform.processes()), "both run again")
    verified(platform)


# Out of memory -------------------------------------------------------------------------------------------------------


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[RunningPlatform]:
    """A platform in a cgroup of 400 MiB below ours."""
    group = _memory_group()
    if group is None:
        pytest.skip("cgroups cannot be made here: no real out-of-memory kill can be caused")
    folder = group / f"servezero-test-{os.getpid()}"
    folder.mkdir()
    try:
        limit = "memory.max" if (folder / "memory.max").exists() else "memory.limit_in_bytes"
        (folder / limit).write_text(str(400 * _MIB))
        platform = RunningPlatform(tmp_path / "platform", SERVE_MEMORY_BUDGET="1GiB")
        enter = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        platform.command = ["sh", "-c", enter, str(folder), *platform.command]
        with platform:
            yield platform
    finally:
        wait_until(lambda: _removed(folder), "the cgroup is empty")


def _memory_group() -> Path | None:
    """Return our own memory cgroup (v1 or v2) where groups may be made below it."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        root = Path("/sys/fs/cgroup", "memory" if "memory" in controllers else "")
        folder = root / path.lstrip("/")
        if "memory" not in controllers and (controllers or not (folder / "memory.max").exists()):
            continue
        probe = folder / f"servezero-probe-{os.getpid()}"
        try:
            probe.mkdir()
            has_limit = any((probe / name).exists() for name in ("memory.max", "memory.limit_in_bytes"))
            probe.rmdir()
        except OSError:
            continue
        if has_limit and os.access(folder / "cgroup.procs", os.W_OK):
            return folder
    return None


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def test_a_replica_that_the_kernel_kills_for_memory_is_recognised_and_given_more(
    limited: RunningPlatform, tmp_path: Path
) -> None:
    platform, cause = limited, tmp_path / "cause"
    settings = scripted(tmp_path / "model", memory_mib=10, override=str(cause))
    platform.deploy("-f", settings, "--name", "grows", "--idle", "0s")
    platform.deploy("-f", scripted(tmp_path / "other", factor=2), "--name", "other", "--idle", "10m")
    wait_until(lambda: not platform.pids("grows"), "it is at zero")
    cause.write_text(json.dumps({"memory_mib": 500}))
    answer = platform.infer("grows", row(1))
    assert (answer.status_code, answer.json()["code"]) == (503, "model_failed")
    assert "memory ran out" in answer.json()["error"]
    decisions = " ".join(line["reason"] for line in platform.get("/deployments/grows/explain")["decisions"])
    assert "ran out of memory: it was given" in decisions
    assert "the next one is given" in decisions
    assert platform.infer("other", row(1)).json()["outputs"][0]["data"][0] == 2, "neighbours live"
    cause.unlink()
    time.sleep(float(answer.headers["retry-after-ms"]) / 1000)
    assert platform.infer("grows", row(1)).status_code == 200


def _free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
