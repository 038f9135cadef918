"""Stored models that were damaged: never served, said, and whole again after a deploy."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.e2e.conftest import StartPlatform
from tests.e2e.platforms import DIGITS, RunningPlatform
from tests.e2e.processes import wait_until
from tests.e2e.requests import THREE, labels

pytestmark = pytest.mark.e2e
MODEL = DIGITS / "model.onnx"


def stored(platform: RunningPlatform) -> Path:
    (path,) = platform.home.store.glob("models/*/files/model.onnx")
    return path


def flip(path: Path) -> None:
    """Flip a bit in the middle as rot does: nothing else about the file changes."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def write_into(path: Path) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\0\0\0\0")


DAMAGE: list[Callable[[Path], None]] = [write_into, Path.unlink]
"""Other kinds: tests/control/test_soundness.py."""


def test_what_was_written_or_removed_is_never_served_and_a_deploy_heals_it(start: StartPlatform) -> None:
    platform = start()
    for number, damage in enumerate(DAMAGE, start=1):
        assert platform.deploy(MODEL, "--idle", "0s")["revision"] == number
        assert labels(platform.infer("digits", THREE).json()) == [3]
        platform.wait_for_zero()
        damage(stored(platform))
        for _ in range(2):
            answer = platform.infer("digits", THREE)
            assert (answer.status_code, answer.json()["code"]) == (503, "model_failed"), (damage, answer.text)
            assert "deploy it again" in answer.json()["error"], answer.text
        assert platform.get("/deployments/digits")["state"] == "failed"
        assert list(platform.home.store.glob("models/*/*")) == []
    assert platform.deploy(MODEL)["revision"] == len(DAMAGE) + 1
    assert labels(platform.infer("digits", THREE).json()) == [3]


def test_a_damaged_model_that_came_from_a_url_is_fetched_again_by_itself(start: StartPlatform) -> None:
    platform = start()
    handler = functools.partial(QuietHandler, directory=str(DIGITS))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/model.onnx"
            body = {"spec": {"name": "digits", "idle": 0}, "model": {"url": url}}
            deployed = platform.api("POST", "/deployments", json=body)
            assert '"deployed"' in deployed.text.splitlines()[-1], deployed.text
            platform.wait_for_zero()
            write_into(stored(platform))
            assert platform.infer("digits", THREE).status_code == 503
            wait_until(lambda: platform.infer("digits", THREE).status_code == 200, "it is fetched again")
            assert labels(platform.infer("digits", THREE).json()) == [3]
            assert platform.get("/deployments/digits")["traffic"] == [{"revision": 1, "weight": 1}]
        finally:
            server.shutdown()
            thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


def test_bits_that_rotted_are_found_beside_the_first_replica_after_a_start(start: StartPlatform) -> None:
    platform = start()
    platform.deploy(MODEL, "--idle", "10m")
    assert platform.stop() == 0
    flip(stored(platform))
    platform.start()
    platform.infer("digits", THREE)
    wait_until(lambda: platform.get("/deployments/digits")["state"] == "failed", "the damage is found")
    platform.wait_for_zero()
    answer = platform.infer("digits", THREE)
    assert (answer.status_code, answer.json()["code"]) == (503, "model_failed")
    assert len(list(platform.home.store.glob("quarantine/*"))) == 1
    assert "a stored model is damaged" in platform.log()
    assert platform.deploy(MODEL)["revision"] == 2
    assert labels(platform.infer("digits", THREE).json()) == [3]


def test_a_store_that_is_removed_while_the_platform_runs_fails_what_it_held_until_it_is_deployed_again(
    start: StartPlatform,
) -> None:
    platform = start()
    platform.deploy(MODEL, "--idle", "0s")
    platform.wait_for_zero()
    shutil.rmtree(platform.home.store)
    answer = platform.infer("digits", THREE)
    assert (answer.status_code, answer.json()["code"]) == (503, "model_failed"), answer.text
    assert platform.deploy(MODEL)["revision"] == 2
    assert labels(platform.infer("digits", THREE).json()) == [3]
