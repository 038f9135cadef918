"""What is fuzzed: a plain function of bytes, and the inputs to begin with.

Contract of `one_input`: it returns for every input. Whatever the code under test may refuse is caught in it by its
exact type; any other exception, and any broken law that it asserts, is a defect. It keeps nothing from one call to the
next that changes what it does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

CORPUS = Path(__file__).parent / "corpus"
"""`<target>/<name>`: inputs that once were too much, and good ones. All are replayed in `make test`."""


class Target(NamedTuple):
    name: str
    one_input: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    """Valid inputs, from which fuzzers get further than from nothing."""
    instrumented: tuple[str, ...]
    """Packages whose branches guide the search."""
    tokens: tuple[bytes, ...] = ()
    """What the format is made of."""

    def corpus(self) -> list[Path]:
        folder = CORPUS / self.name
        return sorted(folder.iterdir()) if folder.is_dir() else []
