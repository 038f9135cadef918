"""What really runs, read from /proc: the platform is not asked."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

MARK = "E2E_PLATFORM"
"""Environment variable by which every process of one platform is found: children inherit it."""

_ROLES = (
    ("serve.platform", "platform"),
    ("billing", "ledger"),
    ("runtime.zygote", "zygote"),
    ("runtime.engines.onnx_files", "check"),
)


def marked(mark: str) -> dict[str, list[int]]:
    """Return the pids of live processes that carry `mark`, by role; whatever has no other role is a `replica`."""
    found: dict[str, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            if f"{MARK}={mark}".encode() not in environment:
                continue
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        found.setdefault(_role(words), []).append(int(entry.name))
    return found


def _role(words: list[str]) -> str:
    for module, role in _ROLES:
        if module in words:
            return role
    return "command" if any(word.endswith("/serve") for word in words) else "replica"


def kill_all(mark: str) -> dict[str, list[int]]:
    """Kill whatever carries `mark` until nothing does; return what there was."""
    before = found = marked(mark)
    while found:
        for pid in [pid for pids in found.values() for pid in pids]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
        found = marked(mark)
    return before


def wait_until(holds: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    """Return once `holds` is true. Real processes give us nothing to await."""
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)
