"""Where a process's groups lie, read from files as kernels write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.core.cgroups import groups


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("0::/a/b\n", ["a/b", "a", ".", "unified/a/b", "unified/a", "unified"]),
        ("0::/\n", [".", "unified"]),
        ("5:memory:/a\n4:cpuset:/x\n", ["memory/a", "memory"]),
        ("5:memory,hugetlb:/a\n", ["memory,hugetlb/a", "memory,hugetlb", "memory/a", "memory"]),
        ("5:memory:/a\n0::/b\n", ["memory/a", "memory", "b", ".", "unified/b", "unified"]),
        ("", []),
    ],
)
def test_a_process_is_limited_by_its_groups_and_those_around_them(
    tmp_path: Path, lines: str, expected: list[str]
) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(lines)
    root = Path("/cgroups")
    found = [folder for group in groups("memory", "7", tmp_path, root) for folder in group.upwards()]
    assert found == [root / path for path in expected]


def test_a_process_that_is_gone_has_no_groups(tmp_path: Path) -> None:
    assert groups("memory", "7", tmp_path) == []
