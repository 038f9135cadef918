"""Platforms for tests: one for all that only ask, fresh ones where something is killed or restarted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.platforms import DIGITS, RunningPlatform

StartPlatform = Callable[..., RunningPlatform]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    """A platform with `digits` deployed and kept running, for tests that leave it as it was."""
    with RunningPlatform(tmp_path_factory.mktemp("shared")) as platform:
        platform.deploy(DIGITS / "model.onnx", "--idle", "10m")
        yield platform


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartPlatform]:
    """Starts platforms that end with the test: `start(*flags, folder="platform", **settings)`."""
    with ExitStack() as stack:

        def started(*flags: str, folder: str = "platform", **environment: str) -> RunningPlatform:
            return stack.enter_context(RunningPlatform(tmp_path / folder, *flags, **environment))

        yield started
