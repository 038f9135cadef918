"""Thousands of stories: in none of them is anything lost, forgotten, charged wrongly or left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.campaign import in_processes
from tests.sim.world import run

ROOT = Path(__file__).parents[2]
STORIES = 2000


@pytest.mark.timeout(600)
def test_no_story_of_many_breaks_a_promise() -> None:
    failures = list(in_processes(range(STORIES), processes=2))
    assert not failures, "\n".join(map(str, failures))


@pytest.mark.parametrize("seed", [3, 12, 58])
def test_a_seed_is_one_story_also_in_another_process_with_other_hashes(seed: int) -> None:
    trace = run(seed)
    assert run(seed) == trace
    environment = os.environ | {"PYTHONHASHSEED": str(seed + 1)}
    command = [sys.executable, "-m", "tests.sim", "--seed", str(seed)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == f"trace {trace}"


def test_stories_differ() -> None:
    assert len({run(seed) for seed in range(5)}) == 5
