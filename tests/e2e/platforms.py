"""A whole platform in real processes, and the ways in which its users reach it: the command, and HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from serve.core.home import Home, PlatformInfo
from tests.e2e.processes import MARK, kill_all, marked, wait_until

SERVE = str(Path(sys.executable).with_name("serve"))
ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "examples" / "digits"
_KEPT = ("PATH", "LANG")


@dataclass(frozen=True, slots=True)
class Result:
    """What a command left."""

    exit_code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class RunningPlatform:
    """One home below `folder`, and the platform that runs in it. Used as a context manager: nothing outlives it.

    `environment`: settings of the platform, such as `SERVE_STORE_BUDGET`.
    """

    def __init__(self, folder: Path, *flags: str, **environment: str) -> None:
        self.home = Home(folder / "home")
        self.folder = folder
        self.mark = str(self.home.path)
        self.command = [sys.executable, "-P", "-m", "serve.platform", "--home", self.mark, "--port", "0", *flags]
        base = {key: value for key, value in os.environ.items() if key in _KEPT}
        self.environment = base | {
            "HOME": str(folder),
            "SERVE_HOME": str(self.home.path),
            MARK: self.mark,
            "COLUMNS": "200",
            "SERVE_TEST_ENGINES": "1",
        }
        self._settings = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = True
        self._http = httpx.Client(timeout=30.0)
        folder.mkdir(parents=True, exist_ok=True)

    # Life ------------------------------------------------------------------------------------------------------------

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the process without waiting for it to be ready."""
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self.environment | self._settings,
                start_new_session=True,
            )
        return self._process

    def start(self) -> Self:
        process = self.launch()
        wait_until(lambda: process.poll() is not None or self._is_up(process.pid), "the platform is up")
        assert process.poll() is None, self.log()
        return self

    def _is_up(self, pid: int) -> bool:
        info = self.home.read_info()
        if info is None or info.pid != pid:
            return False
        try:
            return self._http.get(info.url + "/v2/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> int:
        """End it as an operator does. Return the exit status."""
        self.process.terminate()
        return self.process.wait(30)

    def crash(self) -> None:
        """End the platform's own process as `kill -9` does."""
        self.process.kill()
        self.process.wait(10)

    def unstarted(self) -> Self:
        """Leave it to the block to start a platform in this home."""
        self._starts = False
        return self

    def __enter__(self) -> Self:
        return self.start() if self._starts else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        status = None
        try:
            if self._process is not None and self._process.poll() is None:
                status = self.stop()
        finally:
            self._http.close()
            left = kill_all(self.mark)
        if error is None:
            assert not left, f"left behind: {left}\n{self.log()}"
            assert status in (None, 0), self.log()
            assert "Traceback" not in self.log(), self.log()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    # What can be seen from outside -----------------------------------------------------------------------------------

    @property
    def info(self) -> PlatformInfo:
        info = self.home.read_info()
        assert info is not None, "no platform.json"
        return info

    @property
    def log_file(self) -> Path:
        return self.folder / "platform.out"

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def processes(self) -> dict[str, list[int]]:
        """Return every live process of this platform by role, from /proc."""
        return marked(self.mark)

    def replicas(self) -> list[int]:
        return self.processes().get("replica", [])

    def wait_for_zero(self, timeout_s: float = 20.0) -> None:
        wait_until(lambda: not self.replicas(), "no replica runs", timeout_s)

    # Ways in ---------------------------------------------------------------------------------------------------------

    def cli(self, *arguments: str, stdin: str = "", **environment: str) -> Result:
        """Run the real command with this home."""
        done = subprocess.run(
            [SERVE, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.environment | environment,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def deploy(self, *arguments: Path | str) -> dict[str, Any]:
        """Deploy with the command; return the receipt."""
        result = self.cli("deploy", *map(str, arguments), "--json")
        assert result.exit_code == 0, (result.out, result.err, self.log())
        receipt: dict[str, Any] = result.json
        return receipt

    def api(self, method: str, path: str, token: str | None = None, **options: Any) -> httpx.Response:
        """Call `/api/v1` with the token of the home, or another."""
        headers = {"authorization": f"Bearer {token or self.home.token()}"} | options.pop("headers", {})
        return self._http.request(method, f"{self.info.admin_url}/api/v1{path}", headers=headers, **options)

    def get(self, path: str) -> Any:
        """Return what `GET /api/v1…` answers."""
        answer = self.api("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def http(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Call the data plane."""
        return self._http.request(method, self.info.url + path, **options)

    def infer(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """Call `/v2/models/<path>/infer` with `body`: bytes as they are, anything else as JSON."""
        path = f"/v2/models/{path}/infer"
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {key.replace("_", "-"): value for key, value in headers.items()}
        return self.http("POST", path, content=content, headers=sent)

    def admin(self, method: str, path: str) -> httpx.Response:
        """Call the port of `--admin-port`, below `/`."""
        return self._http.request(method, self.info.admin_url + path)

    def in_flight(self, name: str) -> int:
        """Return how many requests are inside a deployment's replicas."""
        return sum(replica["in_flight"] for replica in self.get(f"/deployments/{name}")["replicas"])

    def pids(self, name: str) -> list[int]:
        """Return the pids of a deployment's replicas as `status` tells them."""
        return [replica["pid"] for replica in self.get(f"/deployments/{name}")["replicas"]]
