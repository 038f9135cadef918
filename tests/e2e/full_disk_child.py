"""A child with a small disk of its own: a platform whose disk is full in every phase of its life. Exits 0 if it held.

Run as a module with the folder of a small file system. `fill` leaves no byte: what still fits into pages that files
have begun goes on, so each scenario asks until the disk has really refused.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from billing.journal import journal_files
from tests.e2e.platforms import DIGITS, RunningPlatform
from tests.e2e.processes import wait_until
from tests.e2e.requests import THREE, labels
from tests.e2e.traffic import trickle

MODEL = DIGITS / "model.onnx"


class SmallDiskPlatform(RunningPlatform):
    """Its own output lies on another disk: that is what an operator reads."""

    @property
    def log_file(self) -> Path:
        return Path(str(self.folder) + ".out")


@contextmanager
def full(disk: Path) -> Iterator[None]:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        count = 1 << 16
        while count:
            try:
                file.write(b"x" * count)
            except OSError:
                count //= 2
    try:
        yield
    finally:
        filler.unlink()


def ask_until_refused(platform: RunningPlatform) -> list[httpx.Response]:
    answers: list[httpx.Response] = []

    def refused() -> bool:
        answers.append(platform.infer("digits", THREE))
        return answers[-1].status_code == 507

    wait_until(refused, "the journal is refused")
    assert "free space" in answers[-1].json()["error"], answers[-1].text
    assert answers[-1].headers["retry-after"] == "1"
    return answers[:-1]


def recorded(platform: RunningPlatform, answer: httpx.Response) -> dict[str, Any]:
    record: dict[str, Any] = platform.get(f"/requests/{answer.headers['x-serve-request-id']}")
    return record


def serving(platform: SmallDiskPlatform, disk: Path) -> None:
    """Admission stops, lives open and close, deploys and bills say why; then everything goes on, and adds up."""
    with trickle(platform, "digits", THREE) as traffic:
        traffic.wait_for(20)
        with full(disk):
            ask_until_refused(platform)
            deploy = platform.cli("deploy", str(MODEL), "--name", "other")
            assert deploy.exit_code == 5, deploy
            assert "free space" in deploy.err, deploy
            bill = platform.api("GET", "/bill")
            assert bill.status_code >= 500, bill.text
            assert "free space" in bill.json()["error"], bill.text
            (pid,) = platform.replicas()
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: set(platform.replicas()) - {pid}, "another replica stands")
            assert platform.process.poll() is None
        wait_until(lambda: platform.infer("digits", THREE).status_code == 200, "it takes requests again")
        traffic.wait_for(20)
    assert traffic.errors == []
    assert traffic.statuses <= {200, 507}, traffic.statuses
    answered = [answer for answer in traffic.answers if answer.status_code == 200]
    for answer in answered:
        assert recorded(platform, answer)["status"] == 200
        assert labels(answer.json()) == [3]
    refused = [answer for answer in traffic.answers if answer.status_code == 507]
    for answer in refused:
        found = platform.api("GET", f"/requests/{answer.headers['x-serve-request-id']}")
        assert found.status_code == 404 or found.json()["charged"] is False, found.text
    verified = platform.get("/bill/verify")
    assert verified["ok"], verified
    assert [item["name"] for item in platform.get("/deployments")["deployments"]] == ["digits"]
    assert platform.deploy(MODEL, "--name", "other")["revision"] >= 1


def ending(platform: SmallDiskPlatform, _disk: Path) -> None:
    """SIGTERM while the journal is refused: out within the drain time, with a log and a status that tell.

    By a size limit of the process: a full disk would take the last records, because the end frees `platform.json`.
    """
    with trickle(platform, "digits", THREE, threads=1) as traffic:
        traffic.wait_for(20)
        size = max(path.stat().st_size for _, _, path in journal_files(platform.home.journal))
        resource.prlimit(platform.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        ask_until_refused(platform)
        before = len(platform.log())
        began = time.monotonic()
        status = platform.stop()
        assert time.monotonic() - began < 10
        assert status == 1, status
        assert "journal cannot be written" in platform.log()[before:], platform.log()
    assert traffic.statuses <= {200, 507, 503}, traffic.statuses
    assert platform.processes() == {}


def starting(platform: SmallDiskPlatform, disk: Path) -> None:
    """A platform that cannot write does not start, and says so in one sentence; then it starts."""
    before = len(platform.log())
    with full(disk):
        assert platform.launch().wait(20) == 1
    said = platform.log()[before:]
    assert "free space" in said, said
    assert "Traceback" not in said, said
    assert platform.home.read_info() is None
    platform.start()
    verified = platform.get("/bill/verify")
    assert verified["ok"], verified
    assert labels(platform.infer("digits", THREE).json()) == [3]


def main() -> None:
    disk = Path(sys.argv[1])
    settings = {"SERVE_DRAIN_TIMEOUT": "4", "SERVE_CHECKPOINT_INTERVAL": "0.5"}
    with SmallDiskPlatform(disk / "platform", **settings) as platform:
        platform.deploy(MODEL, "--min", "1", "--timeout", "3s")
        for scenario in (serving, ending, starting):
            sys.stdout.write(f"{scenario.__name__}\n")
            scenario(platform, disk)


if __name__ == "__main__":
    main()
