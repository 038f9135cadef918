"""Who may import whom: DESIGN §1, with the departures that ARCHITECTURE.md names."""

from __future__ import annotations

import sys

from tests.architecture.source import PACKAGES, Import, Module, imports, is_within, is_within_any, modules

WIRE = {"serve.core.frames", "serve.core.events", "serve.core.ids", "serve.core.meter", "serve.core.logs"}
"""Standard library only: the replica imports them inside a user's own environment."""

COMPOSITION = {"serve.platform"}
"""May import anything, as `__main__` modules may; nothing imports them."""

MAY_IMPORT: dict[str, set[str]] = {
    "serve.core": {"serve.core"},
    "cache": {"cache", "serve.core"},
    "billing": {"billing", "serve.core"},
    "activator": {
        "activator",
        "serve.core",
        "billing.journal",
        "billing.prices",
        "billing.attribute",
        "billing.records",
    },
    "autoscaler": {"autoscaler", "serve.core"},
    "runtime": {"runtime"} | WIRE,
    "runtime.engines": {"runtime.engines.base", "runtime.tensors", "serve.core.events"},
    # The real pieces run there, not copies of them: all but what is outside of a platform (doors, zygotes, processes).
    "simulator": {"simulator", "serve.core", "autoscaler", "billing", "cache.evict"}
    | {f"activator.{module}" for module in ("accounts", "calls", "gate", "pick", "router", "writer")},
    "serve.control": {"serve.control", "serve.core", "activator", "autoscaler", "runtime", "cache", "billing"},
    "serve.cli": {"serve.cli", "serve.core"},
} | dict.fromkeys(WIRE, WIRE)
"""The longest key that an importer lies in is its rule."""

LIBRARIES: dict[str, set[str]] = {
    "serve.core": {"pydantic", "pydantic_settings", "pytimeparse2", "orjson", "prometheus_client", "yaml"},
    "runtime": {"numpy"},
} | {module: set() for module in (*WIRE, "serve.core.home", "serve.core.clock", "runtime.zygote", "runtime.__main__")}
"""Packages that are kept small: all that they may import of others. Their engines have homes of their own."""

HOMES = {
    "kubernetes": "autoscaler.drivers",
    "redis": "activator",
    "boto3": "cache.sources",
    "onnxruntime": "runtime.engines.onnx",
    "onnx": "runtime.engines.onnx_files",
    "torch": "runtime.engines.torch",
    "tensorrt": "runtime.engines.tensorrt",
    "duckdb": "billing",
    "grpc": "activator",
}
"""The one place that knows each of these libraries."""

PURE = {
    "serve.core.durations": {"pytimeparse2"},
    "serve.core.spec": {"pydantic"},
    "serve.core.meter": set(),
    "autoscaler.windows": set(),
    "autoscaler.decide": {"serve.core.scaling", "serve.core.revision"},
    "autoscaler.capacity": set(),
    "activator.pick": {"random"},
    "activator.load": {"serve.core.scaling"},
    "activator.replay": {"serve.core.scaling"},
    "cache.evict": set(),
    "billing.attribute": set(),
    "billing.grouping": {"datetime"},
    "billing.machine": set(),
    "billing.prices": set(),
    "billing.spans": set(),
    "serve.control.receipt": {"billing.records.mebibytes", "decimal", "serve.core.revision", "shlex", "statistics"},
    "serve.control.sample": {"json", "orjson", "serve.core.errors", "serve.core.revision"},
}
"""No clock, no I/O, no asyncio, no log: they take `now`. Beside CALM modules they may import these."""

CALM = {"__future__", "bisect", "collections", "dataclasses", "enum", "fractions", "functools", "hashlib", "heapq"}
CALM |= {"itertools", "math", "operator", "re", "typing", "serve.core.frames", "serve.core.ids", "serve.core.events"}

OF_OURS = set(PACKAGES)


def rule(table: dict[str, set[str]], module: str) -> set[str] | None:
    keys = [key for key in table if is_within(module, key)]
    return table[max(keys, key=len)] if keys else None


def is_root(module: Module) -> bool:
    return module.name in COMPOSITION or module.name.endswith("__main__")


def top(name: str) -> str:
    return name.partition(".")[0]


def ours(module: Module) -> list[Import]:
    return [found for found in imports(module) if top(found.imported) in OF_OURS]


def libraries(module: Module) -> list[Import]:
    known = OF_OURS | sys.stdlib_module_names
    return [found for found in imports(module) if top(found.imported) not in known]


def breaches(module: Module) -> list[str]:
    allowed = rule(MAY_IMPORT, module.name)
    if is_root(module) and not is_within(module.name, "runtime"):
        return []
    if allowed is None:
        return [f"{module.name} has no rule"] if ours(module) else []
    if is_within(module.name, "runtime.engines"):
        allowed = allowed | {module.name}
    return [str(found) for found in ours(module) if not is_within_any(found.imported, allowed)]


def test_packages_import_only_what_the_table_allows() -> None:
    assert [breach for module in modules() for breach in breaches(module)] == []


def test_nothing_imports_a_composition_root() -> None:
    found = [str(found) for module in modules() for found in ours(module) if is_root_name(found.imported)]
    assert found == []


def is_root_name(name: str) -> bool:
    return is_within_any(name, COMPOSITION) or "__main__" in name.split(".")


def test_activator_and_autoscaler_do_not_know_each_other() -> None:
    for one, other in (("activator", "autoscaler"), ("autoscaler", "activator")):
        assert not is_within_any(other, rule(MAY_IMPORT, one) or set())


def test_small_packages_need_only_the_libraries_the_table_names() -> None:
    found = [
        str(found)
        for module in modules()
        for found in libraries(module)
        if (allowed := rule(LIBRARIES, module.name)) is not None
        if top(found.imported) not in allowed and top(found.imported) not in HOMES
    ]
    assert found == []


def test_each_large_library_has_one_home() -> None:
    found = [
        str(found)
        for module in modules()
        for found in libraries(module)
        if (home := HOMES.get(top(found.imported))) and not is_within(module.name, home)
    ]
    assert found == []


def test_pure_modules_know_no_clock_and_touch_nothing() -> None:
    by_name = {module.name: module for module in modules()}
    assert set(PURE) <= set(by_name), "a pure module was moved: say so here"
    found = [
        str(found)
        for name, further in PURE.items()
        for found in imports(by_name[name])
        if not is_within_any(found.imported, CALM | set(PURE) | further)
        if not found.imported.startswith("serve.core.clock.NS_PER_")
    ]
    assert found == []


def test_the_table_would_catch_a_breach() -> None:
    import ast
    from pathlib import Path

    def written(name: str, text: str) -> list[str]:
        return breaches(Module(name, Path(name), ast.parse(text)))

    assert written("activator.gate", "from autoscaler import decide")
    assert written("activator.gate", "def f():\n    import autoscaler.decide")
    assert written("activator.gate", "from billing import ledger")
    assert written("runtime.worker", "from serve.core.spec import DeploymentSpec")
    assert written("runtime.engines.onnx", "from runtime.engines import torch")
    assert written("serve.core.events", "from serve.core.clock import Clock")
    assert written("serve.cli.deploy", "if TYPE_CHECKING:\n    from cache.store import ModelStore")
    assert written("serve.newcomer.x", "import cache")
    assert not written("activator.gate", "from billing.journal import Journal\nimport serve.core.frames")
