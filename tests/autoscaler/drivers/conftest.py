"""Drivers are tested on the loop that the platform runs on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
import uvloop

from autoscaler.drivers.local import LocalDriver
from tests.contract.replicas import children_of_ours


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Hook of pytest-asyncio."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[LocalDriver]:
    """A local driver whose zygote has no libraries; when it is closed, no child of it is left."""
    driver = LocalDriver(tmp_path, flavour="bare")
    await driver.open()
    yield driver
    await driver.close()
    assert not children_of_ours()
