"""Crashes, full disks and file size limits, with real processes and file systems."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_MOUNT = 'mount -t tmpfs -o size=1m,nr_inodes=40 tmpfs "$1" && exec "$2" -m tests.cache.full_disk_child "$1"'
_LIMITED = """
import asyncio, resource, sys
from pathlib import Path
from serve.core.errors import StorageFull
from tests.cache.harness import leftovers, open_store, put
root = Path(sys.argv[1])
store = open_store(root)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    asyncio.run(put(store, b"x" * 1001))
except StorageFull as error:
    assert "1001 B" in str(error), error
else:
    sys.exit("no error")
assert leftovers(root) == [] and store.used_bytes == 0
asyncio.run(put(store, b"x" * 1000))
"""


def _run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_killed_at_any_step_the_store_shows_only_whole_models_and_works_on(tmp_path: Path) -> None:
    output = _run([sys.executable, "-m", "tests.cache.crash_child", str(tmp_path)])
    steps = {name: int(count) for name, count in (line.split() for line in output.splitlines())}
    assert steps.keys() == {"publish", "evict", "delete", "put_aside"}
    assert steps["publish"] > 15
    assert min(steps.values()) >= 8


def may_mount() -> bool:
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    command = [unshare, "-rm", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]  # in a namespace that ends with it
    return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0


def test_a_full_disk_is_said_and_leaves_no_half_file(tmp_path: Path) -> None:
    if not may_mount():
        pytest.skip("this machine does not let a test mount a file system of its own")
    _run(["unshare", "-rm", "sh", "-c", _MOUNT, "sh", str(tmp_path), sys.executable])


def test_a_file_size_limit_is_said_as_a_full_disk(tmp_path: Path) -> None:
    _run([sys.executable, "-c", _LIMITED, str(tmp_path)])
