"""What the tests of the architecture read: our packages as syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGES = ("serve", "activator", "autoscaler", "runtime", "cache", "billing", "simulator")


class Module(NamedTuple):
    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """`activator`, `serve.core`: what a table of packages calls it."""
        parts = self.name.split(".")
        return ".".join(parts[: 2 if parts[0] == "serve" and len(parts) > 2 else 1])


class Import(NamedTuple):
    importer: str
    imported: str
    """The module, or the name in it, such as `serve.core.clock.NS_PER_S`."""
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


@cache
def modules() -> tuple[Module, ...]:
    return tuple(
        Module(module_name(path), path, ast.parse(path.read_text()))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    )


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(module: Module) -> Iterator[Import]:
    """Every import, wherever it stands: at the top, in a function, under TYPE_CHECKING."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (Import(module.name, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name}:{node.lineno}: relative import"
            yield from (Import(module.name, f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def is_within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def is_within_any(name: str, prefixes: set[str]) -> bool:
    return any(is_within(name, prefix) for prefix in prefixes)
