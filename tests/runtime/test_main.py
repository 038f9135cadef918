"""A replica over TCP: who is let in, who is not, and how it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import __main__ as entry
from serve.core.events import Drained, LoadOrder, PhaseDone, Ready, Stats, decode_event, encode_load
from serve.core.frames import (
    HEADER,
    NO_JSON_LENGTH,
    Codec,
    FrameParser,
    Kind,
    RequestHead,
    pack,
    pack_request,
    unpack_response,
)

TOKEN = b"a token of this test"
HELLO = pack(Kind.HELLO, payload=TOKEN)


class Waiting:
    """A replica's process that waits for its platform."""

    def __init__(self, folder: Path, *options: str, token: bytes = TOKEN) -> None:
        token_file = folder / "token"
        token_file.write_bytes(token + b"\n")
        read, write = os.pipe()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "runtime", "--listen", "127.0.0.1:0"),
                *("--token-file", str(token_file), "--announce-fd", str(write), *options),
            ],
            pass_fds=[write],
            stderr=subprocess.DEVNULL,
        )
        os.close(write)
        with os.fdopen(read) as announced:
            self.port = int(announced.readline() or 0)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Waiting]:
    waiting = Waiting(tmp_path)
    yield waiting
    waiting.process.kill()
    waiting.process.wait()


def is_dismissed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def request(stream: int) -> bytes:
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}).encode()
    return pack_request(stream, RequestHead(Codec.OIP, "test-1", NO_JSON_LENGTH, 0), body)


def is_idle(connection: socket.socket) -> bool:
    """Read on; return True with the `Stats` that a replica sends when it has become idle."""
    frames = FrameParser().feed(connection.recv(10_000))
    return any(frame.kind == Kind.EVENT and isinstance(decode_event(frame.payload), Stats) for frame in frames)


def load_until_ready(connection: socket.socket, folder: Path, *, max_batch_rows: int = 32, **script: object) -> None:
    """Send the order to load a scripted model, and read on until the replica is ready."""
    (folder / "model.json").write_text(json.dumps(script))
    order = LoadOrder("echo-r1-aaaaaaaa", "echo", 1, str(folder), "model.json", "scripted", 1, max_batch_rows)
    connection.sendall(pack(Kind.LOAD, payload=encode_load(order)))
    parser = FrameParser()
    while True:
        for frame in parser.feed(connection.recv(10_000)):
            event = decode_event(frame.payload)
            if isinstance(event, Ready):
                return
            assert isinstance(event, PhaseDone)


@pytest.mark.parametrize(
    "first",
    [
        pack(Kind.HELLO, payload=b"another token"),
        pack(Kind.HELLO, payload=TOKEN[:-1]),
        pack(Kind.HELLO, payload=TOKEN + b"x"),
        pack(Kind.HELLO),
        pack(Kind.LOAD, payload=TOKEN),
        pack(Kind.HELLO, stream=1, payload=TOKEN),
        HEADER.pack(1 << 29, Kind.HELLO, 0, 0, 0),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_a_stranger_is_dismissed_and_the_platform_still_let_in(waiting: Waiting, tmp_path: Path, first: bytes) -> None:
    with waiting.connect() as stranger, waiting.connect() as platform:
        stranger.sendall(first)
        assert is_dismissed(stranger)
        platform.sendall(HELLO)
        load_until_ready(platform, tmp_path)


def test_silent_connections_keep_nobody_waiting(waiting: Waiting, tmp_path: Path) -> None:
    with contextlib.ExitStack() as silent:
        first = silent.enter_context(waiting.connect())
        for _ in range(entry.MAX_STRANGERS):
            silent.enter_context(waiting.connect()).sendall(HELLO[:5])
        assert is_dismissed(first)
        with waiting.connect() as platform:
            platform.sendall(HELLO)
            load_until_ready(platform, tmp_path)


def test_a_token_may_come_byte_by_byte_and_the_order_right_behind_it(waiting: Waiting, tmp_path: Path) -> None:
    with waiting.connect() as platform:
        platform.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in HELLO[:-1]:
            platform.sendall(bytes([byte]))
        platform.sendall(HELLO[-1:])
        load_until_ready(platform, tmp_path)


def test_a_replica_has_one_connection_in_its_life(waiting: Waiting, tmp_path: Path) -> None:
    with waiting.connect() as platform:
        platform.sendall(HELLO)
        load_until_ready(platform, tmp_path)
        with pytest.raises(ConnectionRefusedError):
            waiting.connect()
    assert waiting.process.wait(10) == 0


def test_nobody_who_comes_in_time_ends_it(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path, "--wait-s", "0.05")
    assert waiting.process.wait(10) == entry.EXIT_NOBODY_CAME


def test_an_empty_token_is_refused(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path, token=b"")
    assert waiting.process.wait(10) == entry.EXIT_USAGE
    assert waiting.port == 0


def test_sigterm_before_anything_is_loaded_ends_it_with_0(waiting: Waiting) -> None:
    waiting.process.send_signal(signal.SIGTERM)
    assert waiting.process.wait(10) == 0


def test_sigterm_drains_what_came_is_answered_and_drained_is_said(waiting: Waiting, tmp_path: Path) -> None:
    with waiting.connect() as platform:
        platform.sendall(HELLO)
        load_until_ready(platform, tmp_path, run_s=0.2, max_batch_rows=1)
        platform.sendall(b"".join(request(stream) for stream in (1, 2, 3)))
        parser = FrameParser()
        kinds: list[object] = []
        while data := platform.recv(10_000):
            for frame in parser.feed(data):
                if frame.kind == Kind.RESPONSE:
                    kinds.append(unpack_response(frame)[0].status)
                elif isinstance(decode_event(frame.payload), Drained):
                    kinds.append(Drained)
            if len(kinds) == 1:
                waiting.process.send_signal(signal.SIGTERM)
        assert kinds == [200, 200, 200, Drained]
    assert waiting.process.wait(10) == 0


def test_sigterm_ends_an_idle_replica(waiting: Waiting, tmp_path: Path) -> None:
    with waiting.connect() as platform:
        platform.sendall(HELLO)
        load_until_ready(platform, tmp_path)
        platform.sendall(request(1))
        while not is_idle(platform):
            pass
        waiting.process.send_signal(signal.SIGTERM)
        (frame,) = FrameParser().feed(platform.recv(10_000))
        assert isinstance(decode_event(frame.payload), Drained)
        assert platform.recv(1) == b""
    assert waiting.process.wait(10) == 0


def test_a_silent_stranger_is_dismissed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "HELLO_TIMEOUT_S", 0.05)
    with entry.listen("127.0.0.1:0") as listener, socket.create_connection(listener.getsockname()) as stranger:
        with pytest.raises(entry.NobodyCame):
            entry.admit(listener, TOKEN, 0.2)
        assert is_dismissed(stranger)


def test_ipv6_addresses_are_written_in_brackets() -> None:
    with entry.listen("[::1]:0") as listener:
        assert listener.getsockname()[0] == "::1"


def test_little_is_imported_before_the_platform_comes() -> None:
    script = "import sys, runtime.__main__; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, check=True).stdout.split()
    assert not {b"numpy", b"onnxruntime", b"asyncio", b"runtime.worker"} & set(modules)
