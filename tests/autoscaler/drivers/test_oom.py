"""Out of memory is said once for each kill that the kernel counted, and never otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoscaler.drivers.oom import OomKills


@pytest.mark.parametrize(
    "form", ["oom_kill_disable 0\nunder_oom 0\noom_kill {}\n", "low 0\nmax 7\noom 9\noom_kill {}\n"]
)
def test_each_kill_is_taken_once(tmp_path: Path, form: str) -> None:
    counter = tmp_path / "memory.events"
    counter.write_text(form.format(3))
    kills = OomKills(counter)
    assert not kills.take()
    counter.write_text(form.format(5))
    assert [kills.take() for _ in range(4)] == [True, True, False, False]


def test_a_kill_before_a_process_began_or_of_another_is_not_blamed_on_it(tmp_path: Path) -> None:
    counter = tmp_path / "memory.events"
    counter.write_text("oom_kill 0\n")
    kills = OomKills(counter)
    elder = kills.so_far()
    counter.write_text("oom_kill 1\n")
    younger = kills.so_far()
    assert not kills.take(younger), "it was killed by hand"
    counter.write_text("oom_kill 2\n")
    assert kills.take(younger)
    assert not kills.take(elder)
    counter.write_text("oom_kill 3\n")
    kills.take()  # the zygote
    assert not kills.take(elder)


def test_a_cgroup_without_a_counter_never_says_so(tmp_path: Path) -> None:
    assert not OomKills(tmp_path / "missing").take()


def test_this_machines_own_counter_can_be_read() -> None:
    assert not OomKills().take()
