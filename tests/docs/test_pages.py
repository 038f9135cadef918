"""Pages hang together: links lead somewhere, the README leads everywhere, the folder map is the folders."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/*.md")])
_LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_of_a_page_leads_to_a_file(page: Path) -> None:
    targets = [target for target in _LINK.findall(page.read_text()) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_readme_links_every_page_of_the_docs() -> None:
    linked = {(ROOT / target).resolve() for target in _LINK.findall((ROOT / "README.md").read_text())}
    assert {page for page in PAGES if page.parent.name == "docs"} - linked == set()


def test_the_folder_map_of_the_readme_names_the_folders_that_are_there() -> None:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    there = {name.split("/")[0] for name in names if "/" in name and not name.startswith(".")}
    if not there:
        pytest.skip("not a git checkout")
    mapped = set(re.findall(r"^\| `(\w+)/` \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert there - mapped == set()
    assert {name for name in mapped if not (ROOT / name).is_dir()} == set()
