"""The sweep kills what belongs to this home and nothing else."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoscaler.drivers.environment import HOME_VARIABLE, runtime_environment
from autoscaler.drivers.sweep import sweep
from tests.contract.replicas import children_of_ours


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A shell, our child, that keeps a marked process: our grandchild, as leftovers are not our children."""
    mark = f"{HOME_VARIABLE}={tmp_path}"
    script = f"env '{mark}' sh -c 'echo $$; exec sleep 600' & wait"
    shell = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    yield shell
    assert shell.stdout is not None
    shell.stdout.close()
    os.killpg(shell.pid, 9) if shell.poll() is None else None
    shell.wait()
    with contextlib.suppress(ChildProcessError):  # tests before may have made us the parent of what it leaves
        while True:
            os.waitid(os.P_PGID, shell.pid, os.WEXITED)


def test_a_leftover_of_this_home_is_killed(stranger: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert stranger.stdout is not None
    leftover = int(stranger.stdout.readline())
    assert sweep(tmp_path) == [leftover]
    stranger.wait(timeout=10)
    assert sweep(tmp_path) == []


def test_another_homes_processes_are_left_alone(stranger: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert stranger.stdout is not None
    stranger.stdout.readline()
    assert sweep(tmp_path / "other") == []
    assert sweep(Path(str(tmp_path)[:-1])) == []
    assert stranger.poll() is None


def test_our_own_children_are_kept_until_the_end(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "600"], env=runtime_environment(tmp_path, "x"))
    assert sweep(tmp_path) == []
    assert sweep(tmp_path, keep_children=False) == [child.pid]
    assert child.pid not in children_of_ours()
    child.wait()
