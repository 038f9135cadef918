"""Clocks."""

import subprocess
import sys

import pytest

from serve.core.clock import NS_PER_S, SystemClock, VirtualClock, boot_id


def test_virtual_time_moves_only_when_told() -> None:
    clock = VirtualClock(5, 7)
    assert (clock.monotonic_ns(), clock.wall_ns()) == (5, 7)
    clock.advance(1.5)
    assert (clock.monotonic_ns(), clock.wall_ns()) == (5 + 1_500_000_000, 7 + 1_500_000_000)


def test_a_step_of_the_wall_clock_leaves_monotonic_time_alone() -> None:
    clock = VirtualClock()
    before = clock.wall_ns()
    clock.step_wall(-3600)
    assert (clock.monotonic_ns(), clock.wall_ns()) == (0, before - 3600 * NS_PER_S)


def test_virtual_monotonic_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="does not go back"):
        VirtualClock().advance(-0.1)


def test_monotonic_time_is_shared_by_all_processes_of_a_boot() -> None:
    before = SystemClock().monotonic_ns()
    printed = subprocess.check_output([sys.executable, "-c", "import time; print(time.monotonic_ns())"])
    assert before < int(printed) < SystemClock().monotonic_ns()


def test_the_boot_has_one_id() -> None:
    assert boot_id() == boot_id()
    assert len(boot_id()) == 36
