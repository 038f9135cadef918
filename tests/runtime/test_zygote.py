"""The zygote by its protocol: what it says, what it forks, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoscaler.drivers.environment import QUIET_LIBRARIES
from autoscaler.drivers.processes import become_subreaper
from runtime import zygote

PLAYED_WORKER = """
import json, os, random, signal, sys, threading, types
import numpy.random

def run(sock, *, started_ns):
    print("the worker runs")
    while True:
        task = sock.recv(100).decode()
        if not task:
            return 0
        if task == "return":
            return 11
        if task == "exit":
            sys.exit(12)
        if task == "raise":
            raise ValueError("the worker fails")
        if task == "look":
            sock.send(json.dumps({
                "random": [random.random(), float(numpy.random.rand())],
                "mask": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
                "sigterm": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
                "fds": sorted(os.listdir("/proc/self/fd"))[:-1],
                "ordered_ns": started_ns,
                "id": os.environ["SERVE_REPLICA_ID"],
            }).encode())

worker = types.ModuleType("runtime.worker")
worker.run = run
sys.modules["runtime.worker"] = worker
signal.signal(signal.SIGUSR1, lambda *_: threading.Thread(target=threading.Event().wait, daemon=True).start())
from runtime import zygote
sys.exit(zygote.main())
"""


def reap(pid: int) -> int:
    """Return the exit status of a replica, which becomes our child when the process between has ended."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except ChildProcessError:
            assert time.monotonic() < deadline, "the replica never became our child"


class Driven:
    """A zygote with a played worker, and the driver's end of its socket."""

    def __init__(self, folder: Path, environment: dict[str, str], parent_pid: int | None = None) -> None:
        become_subreaper()
        self.log = folder / "log"
        self._numbers = 0
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(20)
        options = [
            "--control-fd",
            str(theirs.fileno()),
            "--flavour",
            "bare",
            "--parent-pid",
            str(parent_pid or os.getpid()),
        ]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PLAYED_WORKER, *options],
                pass_fds=[theirs.fileno()],
                env={**os.environ, **environment, "SERVE_REPLICA_ID": "-" * 96},
                cwd=Path(zygote.__file__).parents[1],
                start_new_session=True,
            )

    def hear(self) -> dict[str, Any]:
        data = self.control.recv(10_000)
        return json.loads(data) if data else {}

    def ask(self) -> tuple[socket.socket, dict[str, Any]]:
        """Have a replica forked; return our end of its socket and the zygote's answer."""
        self._numbers += 1
        ours, theirs = socket.socketpair()
        ours.settimeout(20)
        command = {"number": self._numbers, "replica_id": f"r-{self._numbers}", "name": "r", "ordered_ns": 42}
        with theirs, self.log.open("ab") as log:
            socket.send_fds(self.control, [json.dumps(command).encode()], [theirs.fileno(), log.fileno()])
            answer = self.hear()
        assert answer.pop("number") == self._numbers
        return ours, answer

    def do(self, task: str) -> tuple[int, int]:
        """Have a replica do `task`; return pid and exit status."""
        ours, answer = self.ask()
        with ours:
            ours.send(task.encode())
            return answer["pid"], reap(answer["pid"])


@pytest.fixture
def driven(tmp_path: Path) -> Iterator[Driven]:
    driven = Driven(tmp_path, QUIET_LIBRARIES)
    assert driven.hear() == {"ready": True}
    yield driven
    driven.control.close()
    driven.process.wait(10)


def test_replicas_are_our_children_and_outlive_the_zygote(driven: Driven) -> None:
    ours, answer = driven.ask()
    driven.control.close()
    assert driven.process.wait(10) == 0
    ours.send(b"look")
    assert json.loads(ours.recv(10_000))["id"] == "r-1"
    ours.close()
    assert reap(answer["pid"]) == 0


@pytest.mark.parametrize(("task", "status"), [("return", 11), ("exit", 12), ("raise", zygote.EXIT_BROKEN)])
def test_the_workers_status_is_the_replicas(driven: Driven, task: str, status: int) -> None:
    assert driven.do(task)[1] == status
    assert driven.do("return")[1] == 11


def test_what_a_worker_prints_and_raises_is_in_its_log(driven: Driven) -> None:
    driven.do("raise")
    text = driven.log.read_text()
    assert text.startswith("the worker runs\n")
    assert text.endswith("ValueError: the worker fails\n")


def test_replicas_draw_different_random_numbers_and_start_clean(driven: Driven) -> None:
    seen = []
    for _ in range(3):
        ours, answer = driven.ask()
        with ours:
            ours.send(b"look")
            seen.append(json.loads(ours.recv(10_000)))
        reap(answer["pid"])
    numbers = [number for look in seen for number in look["random"]]
    assert len(set(numbers)) == 6
    for look in seen:
        assert (look["mask"], look["sigterm"], look["ordered_ns"]) == (0, True, 42)
        assert len(look["fds"]) == 4


def test_a_thread_in_the_zygote_stops_it_forking(driven: Driven) -> None:
    driven.process.send_signal(signal.SIGUSR1)
    while len(list(Path(f"/proc/{driven.process.pid}/task").iterdir())) == 1:
        pass
    ours, answer = driven.ask()
    ours.close()
    assert "2 threads and must have one" in answer["error"]
    assert driven.process.wait(10) == zygote.EXIT_UNFIT


def test_a_zygote_whose_parent_is_not_the_platform_leaves_at_once(tmp_path: Path) -> None:
    driven = Driven(tmp_path, QUIET_LIBRARIES, parent_pid=1)
    with contextlib.closing(driven.control):
        assert driven.process.wait(10) == zygote.EXIT_ORPHANED
        assert driven.hear() == {}


def test_a_replica_that_is_stopped_before_it_runs_can_still_be_killed(driven: Driven) -> None:
    ours, answer = driven.ask()
    os.kill(answer["pid"], signal.SIGKILL)
    assert reap(answer["pid"]) == -signal.SIGKILL
    ours.close()
    assert driven.do("return")[1] == 11
