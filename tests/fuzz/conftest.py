"""One platform for all tests here that need a real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.platforms import DIGITS, RunningPlatform


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    """Holds `digits`, with two revisions, kept running."""
    with RunningPlatform(tmp_path_factory.mktemp("fuzzed")) as running:
        running.deploy(DIGITS / "model.onnx", "--idle", "5m")
        running.deploy(DIGITS / "model.onnx", "--idle", "10m")
        yield running
