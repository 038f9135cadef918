"""What the kernel counted: parsed from files as kernels write them, with cgroups of both versions."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from serve.core.kernel import cgroup_cpu_us, read_own_memory, read_process, read_self

STAT = (
    "4711 (a) b (c) S 1 4711 4711 0 -1 4194560 3086 0 0 0 217 33 5 5 20 0 3 0 1226457 254287872 11760 "
    "18446744073709551615 1 1 0 0 0 0 0 16781312 17442 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
)
STATUS = """Name:\ta) b (c
State:\tS (sleeping)
Pid:\t4711
VmPeak:\t  248328 kB
VmHWM:\t   61440 kB
VmRSS:\t   47040 kB
RssAnon:\t   20480 kB
RssFile:\t   26560 kB
RssShmem:\t       0 kB
Threads:\t3
"""
ROLLUP = """55aeba234000-7ffdbfd8e000 ---p 00000000 00:00 0                          [rollup]
Rss:               47040 kB
Pss:               21123 kB
Private_Clean:      1024 kB
Private_Dirty:     10240 kB
"""


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc" / "4711"
    folder.mkdir(parents=True)
    for name, text in (("stat", STAT), ("status", STATUS), ("smaps_rollup", ROLLUP)):
        (folder / name).write_text(text)
    return folder.parent


def group(cgroups: Path, path: str, name: str, text: str, members: str = "4711\n") -> None:
    folder = cgroups / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    (folder / "cgroup.procs").write_text(members)


def test_a_process_is_read_whatever_its_name_is(proc: Path) -> None:
    figures = read_process(4711, proc)
    assert figures is not None
    assert figures.cpu_us == 250 * 1_000_000 // os.sysconf("SC_CLK_TCK")
    assert (figures.pid, figures.start_ticks) == (4711, 1226457)
    assert (figures.anon_bytes, figures.peak_rss_bytes) == (20 << 20, 60 << 20)


def test_a_process_is_read_whose_name_is_no_text(proc: Path) -> None:
    (proc / "4711" / "stat").write_bytes(STAT.encode().replace(b"a) b", b"Gr\xc3\xb6\xff\xc3"))
    (proc / "4711" / "status").write_bytes(STATUS.encode().replace(b"a) b", b"Gr\xc3\xb6\xff\xc3"))
    figures = read_process(4711, proc)
    assert figures is not None
    assert (figures.start_ticks, figures.anon_bytes) == (1226457, 20 << 20)
    assert read_own_memory(4711, proc) is not None


def test_what_it_held_alone_is_its_high_water_less_what_it_shares(proc: Path) -> None:
    memory = read_own_memory(4711, proc)
    assert memory == (10 << 20, (61440 - (47040 - 10240)) << 10)


def test_a_process_that_is_not_there_has_no_figures(proc: Path) -> None:
    assert read_process(1, proc) is None
    assert read_own_memory(1, proc) is None
    assert cgroup_cpu_us(1, proc) is None


def test_a_zombie_holds_nothing(proc: Path) -> None:
    (proc / "4711" / "status").write_text("Name:\tx\nState:\tZ (zombie)\n")
    (proc / "4711" / "smaps_rollup").write_text("")
    figures = read_process(4711, proc)
    assert figures is not None
    assert (figures.cpu_us, figures.anon_bytes) == (250 * 1_000_000 // os.sysconf("SC_CLK_TCK"), 0)
    assert read_own_memory(4711, proc) is None


@pytest.mark.parametrize(
    ("lines", "path", "name", "text"),
    [
        ("0::/pods/one\n", "pods/one", "cpu.stat", "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\n"),
        ("3:cpuset:/\n2:cpuacct:/one\n0::/\n", "cpuacct/one", "cpuacct.usage", "1234567890\n"),
        ("4:cpu,cpuacct:/one\n", "cpu,cpuacct/one", "cpuacct.usage", "1234567890\n"),
        ("4:cpu,cpuacct:/one\n", "cpuacct/one", "cpuacct.usage", "1234567890\n"),
        ("1:cpuset:/\n0::/one\n", "unified/one", "cpu.stat", "usage_usec 1234567\n"),
    ],
    ids=["v2", "v1", "v1 joined", "v1 joined, linked", "hybrid"],
)
def test_a_cgroup_of_its_own_counts_for_a_process(proc: Path, lines: str, path: str, name: str, text: str) -> None:
    cgroups = proc.parent / "cgroup"
    (proc / "4711" / "cgroup").write_text(lines)
    group(cgroups, path, name, text)
    assert cgroup_cpu_us(4711, proc, cgroups) == 1_234_567
    group(cgroups, path, name, text, members="4711\n4712\n")
    assert cgroup_cpu_us(4711, proc, cgroups) is None, "what others used is not its own"


def test_the_root_group_is_nobodys_own(proc: Path) -> None:
    cgroups = proc.parent / "cgroup"
    (proc / "4711" / "cgroup").write_text("2:cpuacct:/\n0::/\n")
    group(cgroups, "cpuacct", "cpuacct.usage", "99999")
    group(cgroups, "", "cpu.stat", "usage_usec 99999\n")
    assert cgroup_cpu_us(4711, proc, cgroups) is None


def test_this_very_process_is_read_on_this_machine() -> None:
    figures, own = read_self(), read_own_memory(os.getpid())
    assert figures is not None
    assert own is not None
    assert 0 < figures.cpu_us <= time.process_time_ns() // 1000
    assert figures.pid == os.getpid()
    assert 0 < own.held_bytes <= own.peak_bytes
    assert 0 < figures.anon_bytes <= figures.peak_rss_bytes
