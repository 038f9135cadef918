"""A platform to measure, in a temporary home and gone afterwards; and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.bodies import Body
from benchmarks.models import ROOT

SERVE = (sys.executable, "-c", "import sys; from serve.cli.main import main; sys.exit(main())")
ZERO_TIMEOUT_S = 60.0


class NotAtZeroError(Exception):
    """A sample that cannot be proven: the run is worth nothing."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    elapsed_ms: float
    """Request sent until the last byte of the answer, on a connection that was open before."""


@dataclass(frozen=True)
class Platform:
    url: str
    pid: int
    home: Path

    def serve(self, *arguments: str) -> str:
        """Run a command; return its stdout. Raise with its stderr where it fails."""
        environment = os.environ | {"SERVE_HOME": str(self.home)}
        done = subprocess.run([*SERVE, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"serve {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def deploy(self, model: Path, name: str, *flags: str) -> None:
        self.serve("deploy", str(model), "--name", name, *flags)

    def status(self, name: str) -> dict[str, Any]:
        """Return what `serve status NAME --json` prints, without the cost of a command."""
        token = (self.home / "token").read_text().strip()
        connection = self._connect()
        with contextlib.closing(connection):
            connection.request("GET", f"/api/v1/deployments/{name}", headers={"authorization": f"Bearer {token}"})
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise RuntimeError(f"status of {name}: {body!r}")
            document: dict[str, Any] = json.loads(body)
            return document

    def infer(self, name: str, body: Body) -> Answer:
        connection = self._connect()
        with contextlib.closing(connection):
            connection.connect()
            start_ns = time.monotonic_ns()
            connection.request("POST", f"/v2/models/{name}/infer", body.data, body.headers)
            response = connection.getresponse()
            data = response.read()
            elapsed_ms = (time.monotonic_ns() - start_ns) / 1e6
            headers = {key.lower(): value for key, value in response.getheaders()}
            return Answer(response.status, headers, data, elapsed_ms)

    def processes(self) -> list[psutil.Process]:
        """Return the platform's own process and all that come from it."""
        root = psutil.Process(self.pid)
        return [root, *root.children(recursive=True)]

    def wait_for_zero(self, name: str, resting: int) -> None:
        """Return once no replica of `name` is left: the platform says so, and only its `resting` processes exist."""
        until = time.monotonic() + ZERO_TIMEOUT_S
        while time.monotonic() < until:
            if not self.status(name)["replicas"] and len(self.processes()) <= resting:
                return
            time.sleep(0.05)
        raise NotAtZeroError(f"{name} is not at zero: {[found.cmdline() for found in self.processes()]}")

    def _connect(self) -> http.client.HTTPConnection:
        address = urlsplit(self.url)
        return http.client.HTTPConnection(str(address.hostname), address.port, timeout=300)


@contextlib.contextmanager
def platform(*flags: str) -> Iterator[Platform]:
    """Start a platform with these flags of `serve up`; stop it and remove its home in the end."""
    with tempfile.TemporaryDirectory(prefix="serve-bench.") as folder:
        home = Path(folder) / "home"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SERVE_")}
        command = [*SERVE, "up", "--detach", "--port", "0", "--home", str(home), "--json", *flags]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        info = json.loads(done.stdout)
        started = Platform(info["url"], info["pid"], home)
        try:
            yield started
        finally:
            started.serve("down", "--wait", "30s")


def resting_processes(running: Platform) -> int:
    """Return how many processes a platform has before anything was deployed: itself, ledger, zygote."""
    until = time.monotonic() + 10
    count = len(running.processes())
    while time.monotonic() < until:
        time.sleep(0.5)
        before, count = count, len(running.processes())
        if before == count:
            return count
    raise NotAtZeroError("the platform does not come to rest")


def pids() -> set[int]:
    """Return every process of this machine."""
    return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
