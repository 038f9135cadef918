"""The command against a server that answers nonsense, and with arguments that are nonsense: never a traceback."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.cli.main import main
from tests.cli.fake_control import BILL, DECISIONS, DEPLOYMENT, HISTORY, RECEIPT, THREE

INFER = Path(__file__).parents[2] / "examples" / "digits" / "three.json"
COMMANDS = {
    "ls": ["ls"],
    "status": ["status", "digits"],
    "history": ["history", "digits"],
    "rollback": ["rollback", "digits"],
    "delete": ["delete", "digits", "--yes"],
    "logs": ["logs", "digits"],
    "explain": ["explain", "digits"],
    "bill": ["bill"],
    "csv": ["bill", "--csv"],
    "verify": ["bill", "verify"],
    "predict": ["predict", "digits", "-i", str(INFER)],
    "deploy": ["deploy", "http://127.0.0.1/m.onnx"],
}
GOOD: dict[str, Any] = {
    "ls": {"deployments": [DEPLOYMENT]},
    "status": {"name": "digits", "state": "ready", "traffic": [{"revision": 1, "weight": 1}], "queue": {"count": 0}},
    "history": {"revisions": HISTORY},
    "explain": {"decisions": DECISIONS},
    "bill": BILL,
    "verify": {"ok": True, "lives": 1, "requests": 2, "problems": [], "notes": []},
    "predict": THREE,
    "deploy": {"event": "deployed", "unchanged": False, "receipt": RECEIPT},
}
QUICK = settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))


class Liar:
    """Answers every connection with the same bytes, and closes."""

    def __init__(self) -> None:
        self.answer = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.settimeout(5)
                    self._read_request(connection)
                    connection.sendall(self.answer)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 16):
                        pass
                except OSError:
                    continue

    @staticmethod
    def _read_request(connection: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(1 << 16) or b"\r\n\r\n"
        head, _, body = data.partition(b"\r\n\r\n")
        announced = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        while announced and len(body) < int(announced[1]):
            body += connection.recv(1 << 16)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def liar() -> Iterator[Liar]:
    server = Liar()
    yield server
    server.close()


class Told:
    """Runs the command in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path) -> None:
        self._patch, self._capsys = monkeypatch, capsys
        monkeypatch.setenv("SERVE_HOME", str(home))
        monkeypatch.setenv("SERVE_TOKEN", "t")

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        self._patch.setattr(sys, "argv", ["serve", *arguments])
        try:
            code = main()
        except SystemExit as left:  # as typer does after usage errors
            code = int(left.code or 0)
        out, err = self._capsys.readouterr()
        assert "Traceback" not in out + err, err
        return code, out, err


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Told:
    return Told(monkeypatch, capsys, tmp_path)


def http(body: bytes, *lines: bytes, status: bytes = b"200 OK", length: int | None = None) -> bytes:
    size = b"content-length: %d" % (len(body) if length is None else length)
    return b"\r\n".join((b"HTTP/1.1 " + status, size, *lines, b"", body))


NONSENSE = {
    "nothing": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a head without end": b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000,
    "an odd status": b"HTTP/1.1 abc\r\n\r\n",
    "empty": http(b""),
    "a page": http(b"<html>It works!</html>", b"content-type: text/html"),
    "cut short": http(b'{"deployments": [', length=500),
    "half JSON": http(b'{"deployments": ['),
    "a list": http(b"[]"),
    "null": http(b"null"),
    "a number": http(b"7"),
    "NUL": http(b"\x00\xff\xfe"),
    "deep": http(b'{"deployments":' + b"[" * 100_000),
    "no keys": http(b"{}"),
    "no gzip": http(b"no gzip", b"content-encoding: gzip"),
    "no chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "redirect": http(b"", b"location: http://127.0.0.1:1/", status=b"302 Found"),
    "a refusal of nonsense": http(b"[" * 100_000, status=b"503 No"),
    "a refusal of wrong types": http(b'{"error": {"a": [1]}, "code": [], "files": 7}', status=b"422 No"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_answer_that_is_nonsense_is_told_in_a_sentence(told: Told, liar: Liar, command: str) -> None:
    for name, answer in NONSENSE.items():
        if command == "csv" and name in (
            "empty",
            "a page",
            "half JSON",
            "a list",
            "null",
            "a number",
            "deep",
            "no keys",
        ):
            continue  # text, as it was asked for
        if command == "logs" and name in ("empty", "no keys"):
            continue  # no lines; a line of which nothing is known
        liar.answer = answer
        code, _, err = told(*COMMANDS[command], "--url", liar.url)
        assert code in (1, 2, 3, 4, 5, 6), (name, code, err)
        assert err.count("error: ") == 1, (name, err)


@pytest.mark.parametrize("command", sorted(GOOD))
def test_an_answer_of_wrong_types_is_shown_or_told_in_a_sentence(told: Told, liar: Liar, command: str) -> None:
    @QUICK
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        document = json.loads(json.dumps(GOOD[command]))
        for _ in range(data.draw(st.integers(1, 3))):
            spoil(document, data)
        liar.answer = http(json.dumps(document).encode())
        code, _, err = told(*COMMANDS[command], "--url", liar.url)
        assert code == 0 or "error: " in err or command == "verify", (code, err)

    holds()


def spoil(document: Any, data: st.DataObject) -> None:
    """Put something else somewhere into a document."""
    place = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        below = place[key]
        if isinstance(below, dict | list) and below and data.draw(st.booleans()):
            place = below
            continue
        if isinstance(place, dict) and data.draw(st.integers(0, 4)) == 0:
            del place[key]
        else:
            odd: st.SearchStrategy[Any] = st.sampled_from(
                [None, True, -1, 1e308, float("inf"), 10**400, "", "x", "\ud800", [], {}, [[]], {"a": 1}]
            )
            place[key] = data.draw(odd)
        return


WORDS = st.sampled_from(
    [
        *("ls", "status", "history", "rollback", "delete", "logs", "explain", "bill", "verify", "predict", "deploy"),
        *("--json", "--yes", "--by", "--since", "--until", "--csv", "--url", "--home", "--tail", "--wait", "--timeout"),
        *(
            "--label",
            "--engine-setting",
            "--sample",
            "--input",
            "-f",
            "--follow",
            "--min",
            "--idle",
            "--",
            "-",
            "--help",
        ),
        *(
            "digits",
            "http://",
            "http://[::1",
            "http://a..b",
            "ftp://x",
            "//",
            "../..",
            "~nobody/x",
            "a=b",
            "=",
            "1e999",
        ),
        *("-1", "9" * 400, "nan", "inf", "\udcff", "\x1b[31m", "é", "", " ", "label:", "2026-13-01", "99999999999d"),
    ]
)


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(WORDS, WORDS, WORDS, st.text(max_size=10)), max_size=7))
def test_arguments_of_any_kind_end_in_an_exit_code(told: Told, arguments: list[str]) -> None:
    if {"up", "down"} & set(arguments):
        return
    code, _, _ = told(*arguments)
    assert 0 <= code <= 6
