"""What `docs/reliability.md` promises, a test proves: every row names one that is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"


def rows() -> list[list[str]]:
    """Return the cells of every row of the page's tables, their headings left out."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if row[0] not in {"fault", "---"} and not set(row[0]) <= {"-", " "}]


def test_every_row_says_what_the_caller_sees_what_is_kept_and_which_test_proves_it() -> None:
    assert len(rows()) > 60
    assert [row for row in rows() if len(row) != 4 or not all(row)] == []


def test_the_tests_that_the_page_names_are_there() -> None:
    missing = []
    for row in rows():
        proofs = re.findall(r"`(tests/[\w/]+\.py)::(\w+)(?:\.(\w+))?`", row[-1])
        if not proofs:
            missing.append(row[0])
        for path, name, method in proofs:
            text = (ROOT / path).read_text() if (ROOT / path).exists() else ""
            if not re.search(rf"(?:def|class) {name}\b|^{name}\b", text, re.MULTILINE) or (
                method and f"def {method}(" not in text
            ):
                missing.append(f"{path}::{name}")
    assert missing == []
