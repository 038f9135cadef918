"""Platforms on disks that are full, damaged or forbidden."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cache.test_disasters import may_mount

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
_MOUNT = 'mount -t tmpfs -o size=6m tmpfs "$1" && exec "$2" -m tests.e2e.full_disk_child "$1"'


def test_on_a_full_disk_no_answer_is_lost_or_charged_wrongly_and_all_goes_on_when_there_is_space(
    tmp_path: Path,
) -> None:
    if not may_mount():
        pytest.skip("this machine does not let a test mount a file system of its own")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["unshare", "-rm", "sh", "-c", _MOUNT, "sh", str(folder), sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
