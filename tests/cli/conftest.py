"""The real command as a child process, against a fake platform on a real socket."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from tests.cli.fake_control import TOKEN, FakePlatform, app

COMMAND = [sys.executable, "-P", "-c", "import sys; from serve.cli.main import main; sys.exit(main())"]


@dataclass(frozen=True)
class Result:
    exit_code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Command:
    """Runs `serve` in a folder and an environment of its own."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        keep = {key: value for key, value in os.environ.items() if key in ("PATH", "LANG", "HOME")}
        self.environment = keep | {"SERVE_HOME": str(folder / "home"), "COLUMNS": "200"} | environment

    def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> Result:
        done = subprocess.run(
            [*COMMAND, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.environment | environment,
            timeout=40,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)


@dataclass
class Served:
    """A fake platform that listens, and a command that is told its address."""

    url: str
    state: FakePlatform
    serve: Command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def alone(folder: Path) -> Command:
    """The command where no platform runs."""
    return Command(folder)


@pytest.fixture
def served(folder: Path) -> Iterator[Served]:
    state = FakePlatform()
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app(state), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield Served(url, state, Command(folder, SERVE_URL=url, SERVE_TOKEN=TOKEN))
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
        listener.close()


@pytest.fixture
def model(folder: Path) -> Callable[..., Path]:
    """Make a model file: the fake reads only whether it names external data."""

    def make(path: str = "digits/model.onnx", content: bytes = b"onnx") -> Path:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        return target

    return make
