"""Loops of contract tests: asyncio's own, and uvloop, which the platform runs on, where a test asks for it by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    """Hook of pytest-asyncio: a test names its loops in `mark.asyncio(loop_factories=[…])`."""
    factories: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    if item.nodeid.startswith("tests/contract/test_driver.py"):
        factories["uvloop"] = uvloop.new_event_loop
    return factories
