"""What only the exec driver has: a token, and a process that may not come up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from autoscaler.drivers import exec as exec_driver
from autoscaler.drivers.base import DriverError
from autoscaler.drivers.exec import ExecDriver
from autoscaler.drivers.processes import spawn
from tests.contract.replicas import Observer, children_of_ours, scripted


async def test_the_token_is_in_neither_the_command_line_nor_the_environment(tmp_path: Path) -> None:
    driver = ExecDriver(tmp_path)
    await driver.open()
    try:
        started = await driver.start(scripted(tmp_path), Observer(), tmp_path / "a.log")
        for name in ("cmdline", "environ"):
            shown = Path(f"/proc/{started.pid}/{name}").read_bytes()  # noqa: ASYNC240
            assert shown
            assert not re.search(rb"[0-9a-f]{64}", shown)
    finally:
        await driver.close()


async def test_a_process_that_does_not_come_up_is_an_error_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exec_driver, "spawn", lambda module, *rest: spawn("runtime.no_such_module", *rest))
    driver = ExecDriver(tmp_path)
    await driver.open()
    observer = Observer()
    with pytest.raises(DriverError, match=r"No module named runtime\.no_such_module"):
        await driver.start(scripted(tmp_path), observer, tmp_path / "a.log")
    await driver.close()
    assert not observer.exits
    assert not children_of_ours()
