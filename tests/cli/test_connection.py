"""Which platform the command finds, what it tells it, and how it fails where there is none."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from serve.cli.connect import connect
from serve.cli.failure import CommandError
from tests.cli.conftest import Command, Served
from tests.cli.fake_control import TOKEN


def test_without_a_platform_a_read_exits_4_and_names_the_remedy(alone: Command) -> None:
    people, program = alone("ls"), alone("ls", "--json")
    assert people.exit_code == program.exit_code == 4
    assert "serve up --detach" in people.err
    assert program.json["code"] == "unreachable"


def test_an_address_where_nobody_listens_exits_4(alone: Command) -> None:
    result = alone("ls", "--url", "127.0.0.1:1")
    assert result.exit_code == 4
    assert "cannot reach the platform at http://127.0.0.1:1" in result.err


def test_the_flag_wins_over_the_environment(served: Served) -> None:
    assert served.serve("ls", "--url", served.url, SERVE_URL="http://127.0.0.1:1").exit_code == 0


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://[", "http://h:port"])
def test_what_is_no_address_is_a_usage_error(alone: Command, url: str) -> None:
    result = alone("ls", "--url", url)
    assert result.exit_code == 2
    assert "is not the address of a platform" in result.err


def test_a_wrong_token_is_the_platforms_sentence(served: Served) -> None:
    result = served.serve("ls", "--json", SERVE_TOKEN="wrong")
    assert result.exit_code == 1
    assert result.json["code"] == "unauthorized"


def test_the_token_in_the_home_goes_to_this_machine_only(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.delenv("SERVE_TOKEN", raising=False)
    home = str(tmp_path)
    with open(f"{home}/token", "w") as file:  # noqa: PTH123
        file.write(TOKEN)
    assert connect("http://127.0.0.1:8000", home).api._token == TOKEN
    assert connect("http://localhost:8000", home).api._token == TOKEN
    assert connect("http://models.example", home).api._token is None
    monkeypatch.setenv("SERVE_TOKEN", "given")
    assert connect("http://models.example", home).api._token == "given"


class _Stranger(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<html>hello</html>" if "deployments" in self.path else b""
        self.send_response(200 if self.path.endswith("deployments") else 502)
        self.send_header("content-length", str(len(body) + (10 if "digits" in self.path else 0)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def stranger() -> Iterator[str]:
    """Some other HTTP server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Stranger)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_another_server_at_the_address_is_recognised(alone: Command, stranger: str) -> None:
    for command in (["ls"], ["bill"]):
        result = alone(*command, "--url", stranger)
        assert result.exit_code == 1
        assert "is it a ServeZero platform?" in result.err


def test_an_answer_cut_short_is_unreachable_not_a_traceback(alone: Command, stranger: str) -> None:
    result = alone("status", "digits", "--url", stranger)
    assert result.exit_code == 4
    assert "Traceback" not in result.err


def test_a_deadline_that_passed_leaves_no_timer_behind() -> None:
    import signal

    from serve.cli.client import deadline

    with pytest.raises(CommandError, match="too slow"), deadline(0.01, "too slow"):
        signal.pause()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
