"""The shape of the source: where files lie, how large they are, and what only one place may do."""

from __future__ import annotations

import ast
import importlib
from collections import Counter
from collections.abc import Iterator

from tests.architecture.source import PACKAGES, ROOT, Module, is_within, modules

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
TESTS = ROOT / "tests"


def test_each_package_is_the_one_in_this_folder() -> None:
    present = [package for package in PACKAGES if (ROOT / package).is_dir()]
    assert len(present) >= 6
    for package in present:
        assert importlib.import_module(package).__file__ == str(ROOT / package / "__init__.py")


def test_package_files_are_empty() -> None:
    assert [m.name for m in modules() if m.path.name == "__init__.py" and m.path.stat().st_size] == []


def test_every_folder_of_code_is_a_package() -> None:
    folders = {module.path.parent for module in modules()} | {path.parent for path in TESTS.rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_at_most_one_file_a_package_is_large() -> None:
    large = [module for module in modules() if line_count(module) > MAX_FILE_LINES]
    crowded = {package for package, count in Counter(module.package for module in large).items() if count > 1}
    assert [f"{m.name}: {line_count(m)} lines" for m in large if m.package in crowded] == []


def line_count(module: Module) -> int:
    return len(module.path.read_text().splitlines())


def test_functions_are_short() -> None:
    found = [
        f"{module.name}.{node.name}: {body_lines(node)} lines"
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and body_lines(node) > MAX_FUNCTION_LINES
    ]
    assert found == []


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of what a function does: the signature of a command is a table of its options."""
    return (function.end_lineno or 0) - function.body[0].lineno + 1


def test_tasks_are_made_by_the_lifecycle_or_in_a_block_that_waits_for_them() -> None:
    found = [
        f"{module.name}:{node.lineno} {ast.unparse(node)}"
        for module in modules()
        if module.name != "serve.core.lifecycle"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in {"create_task", "ensure_future"}
        if ast.unparse(node.value) not in task_groups(module.tree)
    ]
    assert found == []


def task_groups(tree: ast.Module) -> set[str]:
    """Names given by `async with asyncio.TaskGroup() as name`."""
    return {
        item.optional_vars.id
        for node in ast.walk(tree)
        if isinstance(node, ast.AsyncWith)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name) and ast.unparse(item.context_expr) == "asyncio.TaskGroup()"
    }


def test_wall_time_comes_from_the_clock_alone() -> None:
    assert outside("serve.core.clock", {"time.time", "time.time_ns"}) == []


def test_only_the_command_asks_what_day_it_is() -> None:
    assert outside("serve.cli", {"datetime.now", "datetime.utcnow", "datetime.today", "date.today"}) == []


def outside(home: str, names: set[str]) -> list[str]:
    """Return where these names are used, as in `time.time`, outside their home."""
    return [
        f"{module.name}:{line} uses {name}"
        for module in modules()
        if not is_within(module.name, home)
        for name, line in used(module)
        if any(f".{name}".endswith(f".{banned}") for banned in names)
    ]


def used(module: Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            yield ast.unparse(node), node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
