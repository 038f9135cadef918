"""Too many callers and callers who mean ill, against a real platform: the others are served, and memory has a bound."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.e2e.conftest import StartPlatform
from tests.e2e.models import row, scripted
from tests.e2e.overload import PADDING_BYTES, QUEUE, QUEUE_BYTES, TIMEOUT_S, deploy, overload
from tests.e2e.platforms import DIGITS, RunningPlatform
from tests.e2e.processes import wait_until
from tests.e2e.raw import exchange, post
from tests.e2e.requests import THREE

pytestmark = pytest.mark.e2e
MIB = 1 << 20


def test_ten_times_what_can_be_answered_is_answered_in_time_or_refused_at_once(
    start: StartPlatform, tmp_path: Path
) -> None:
    platform = start()
    deploy(platform, tmp_path / "model")
    found = asyncio.run(overload(platform, 2, 10))
    assert {one.status for one in found.ended} == {200, 503}
    assert {one.code for one in found.refused} == {"queue_full"}
    assert len(found.answered) > QUEUE
    assert max(one.took_s for one in found.answered) < TIMEOUT_S
    assert min(one.retry_after_s for one in found.refused) >= 1
    waited_s = sorted(one.took_s for one in found.answered)[len(found.answered) // 2]
    assert max(one.took_s for one in found.refused) < waited_s, "who is refused does not wait first"
    assert found.grown_bytes < QUEUE_BYTES + 2 * QUEUE * PADDING_BYTES + 32 * MIB
    assert platform.infer("slow", row(1.0)).status_code == 200


@contextlib.contextmanager
def connections(platform: RunningPlatform, count: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    """Hold connections open, each with `data` sent on it."""
    parts = urlsplit(platform.info.url)
    with contextlib.ExitStack() as stack:
        held = []
        for _ in range(count):
            sock = stack.enter_context(socket.create_connection((parts.hostname, parts.port), 10))
            sock.sendall(data)
            held.append(sock)
        yield held


def test_more_connections_than_descriptors_keep_nobody_out_and_replicas_can_still_start(
    start: StartPlatform, tmp_path: Path
) -> None:
    platform = RunningPlatform(tmp_path / "few")
    platform.command[:0] = ["sh", "-c", 'ulimit -n 400 && exec "$@"', "sh"]
    with platform:
        platform.deploy(DIGITS / "model.onnx", "--idle", "10m")
        with connections(platform, 600):
            for _ in range(5):
                (answer,) = exchange(platform.info.url, post("/v2/models/digits/infer", b"{}"))
                assert answer.status == 400
            platform.deploy("-f", scripted(tmp_path / "more"), "--name", "more", "--idle", "10m")
            assert platform.infer("more", row(1.0)).status_code == 200
            assert len(platform.replicas()) == 2


def test_a_platform_without_descriptors_serves_on_does_not_spin_and_recovers(
    start: StartPlatform,
) -> None:
    platform = start()
    platform.deploy(DIGITS / "model.onnx", "--idle", "10m")
    process = psutil.Process(platform.process.pid)
    assert platform.infer("digits", THREE).status_code == 200  # on a connection that stays
    had = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    assert had[0] == had[1], "it takes what the system grants"
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (process.num_fds() + 5, had[1]))
    with connections(platform, 50):
        before_s = sum(process.cpu_times()[:2])
        time.sleep(1.0)
        assert sum(process.cpu_times()[:2]) - before_s < 0.5, "it does not try without end"
        assert platform.infer("digits", THREE).status_code == 200
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, had)
    wait_until(lambda: exchange(platform.info.url, post("/v2/models/digits/infer", b"{}")), "it accepts again")


def test_clients_that_are_stuck_do_not_hold_up_the_end(start: StartPlatform, tmp_path: Path) -> None:
    platform = start(SERVE_DRAIN_TIMEOUT="60")
    platform.deploy("-f", scripted(tmp_path / "model", run_s=0.5), "--name", "m", "--idle", "10m")
    with (
        connections(platform, 3, b"POST /v2/mod"),
        connections(platform, 3, post("/v2/models/m/infer", b" " * 100)[:-50]) as small,
        connections(platform, 3, post("/v2/models/m/infer", b" " * MIB)[:-50]),
        connections(
            platform, 3, b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n"
        ),
        connections(platform, 20, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 60),
    ):
        platform.process.terminate()
        assert platform.process.wait(25) == 0, "in less than half the time that requests have"
        assert small[0].recv(4096).startswith(b"HTTP/1.1 503 ")
