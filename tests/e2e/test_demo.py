"""`make demo` shows what it promises, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
STARTED = "started the platform"

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def demo(folder: Path) -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        [ROOT / "scripts" / "demo.sh"],
        env=os.environ | {"PATH": path, "TMPDIR": str(folder), "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of live processes that work in a home below `folder`."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(folder) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(line)
    return found


def test_the_demo_goes_from_zero_to_an_answer_a_bill_and_zero_again(tmp_path: Path) -> None:
    with demo(tmp_path) as running:
        said = running.communicate(timeout=150)[0]
    assert running.returncode == 0, said
    assert "digits revision 1: deployed" in said
    assert "It says 3, from zero." in said
    assert "cold start" in said
    assert said.count("is gone.") == 2
    assert "the ledger adds up" in said
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


def test_a_demo_that_is_interrupted_leaves_nothing_behind(tmp_path: Path) -> None:
    with demo(tmp_path) as running:
        assert running.stdout is not None
        while STARTED not in (line := running.stdout.readline()):
            assert line, "it ended before it began"
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=60)
    assert running.returncode == 143
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []
