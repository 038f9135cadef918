"""Homes that cannot be used: one sentence, exit code 1, no traceback; and odd ones that can."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cache.test_disasters import may_mount
from tests.e2e.conftest import StartPlatform
from tests.e2e.platforms import DIGITS, RunningPlatform
from tests.e2e.requests import THREE, labels
from tests.e2e.test_doors import ends_with

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    ("name", "is_folder", "what"),
    [
        ("platform.json", True, "there is a folder where a file must be"),
        ("store/blobs", False, "there is a file where a folder must be"),
    ],
)
def test_what_is_in_the_way_inside_the_home_is_one_sentence(
    tmp_path: Path, name: str, is_folder: bool, what: str
) -> None:
    path = tmp_path / "home" / name
    path.parent.mkdir(parents=True)
    if is_folder:
        path.mkdir()
    else:
        path.touch()
    (said,) = [line for line in ends_with(tmp_path) if not line.startswith("{")]
    assert str(path) in said
    assert what in said


def test_a_home_that_belongs_to_somebody_else_is_one_sentence(tmp_path: Path) -> None:
    if not may_mount() or os.geteuid() != 0:
        pytest.skip("this machine does not let a test give a folder away and lose the right to it")
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    os.chown(home, 12345, 12345)
    command = ["unshare", "-r", sys.executable, "-P", "-m", "serve.platform", "--home", str(home), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    (said,) = done.stderr.splitlines()
    assert "Permission denied" in said
    assert "--home" in said


def test_the_command_says_so_too(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    platform = RunningPlatform(tmp_path).unstarted()
    with platform:
        for arguments in (("up", "--detach", "--port", "0"), ("deploy", str(DIGITS / "model.onnx"))):
            result = platform.cli(*arguments)
            assert result.exit_code == 1
            assert "there is a file where a folder must be" in result.err
        result = platform.cli("status", "digits")
        assert result.exit_code == 4
        assert "no platform runs" in result.err


def test_a_long_home_with_spaces_and_any_letters_is_a_home_like_another(start: StartPlatform) -> None:
    platform = start(folder="Ähnlich dem, was man « zu Hause » nennt " + "x" * 120)
    assert len(str(platform.home.path)) > 150, "longer than the path of a unix socket may be"
    platform.home.token_file.chmod(0o644)
    platform.deploy(DIGITS / "model.onnx")
    assert labels(platform.infer("digits", THREE).json()) == [3]


def test_what_a_dead_platform_left_in_its_home_does_not_stop_the_next(start: StartPlatform) -> None:
    platform = start()
    platform.crash()
    platform.home.info_file.write_text("{ torn")
    platform.home.token_file.write_text("")
    platform.start()
    assert platform.get("/deployments")["deployments"] == []
