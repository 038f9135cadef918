"""`serve up` and `serve down` with a stand-in for the platform's process: same lock, same file, same signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve.cli.local import running
from serve.core.home import Home
from tests.cli.conftest import COMMAND, Command

ROOT = Path(__file__).parents[2]


def has_ended(pid: int) -> bool:
    """Gone, or a zombie that the machine's init has yet to collect."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def serve(folder: Path) -> Iterator[Command]:
    """The command, whose platform is the stand-in on a port nobody has."""
    path = os.pathsep.join([str(ROOT / "tests" / "cli" / "stand_in"), str(ROOT)])
    command = Command(folder, PYTHONPATH=path, SERVE_PORT="0")
    yield command
    info = running(Home(folder / "home"))
    if info is not None:
        os.kill(info.pid, signal.SIGKILL)


def test_up_detached_returns_once_the_platform_answers_and_down_ends_it(serve: Command, folder: Path) -> None:
    up = serve("up", "--detach")
    assert up.exit_code == 0, up.err
    assert up.out.startswith("http://127.0.0.1:")
    info = running(Home(folder / "home"))
    assert info is not None
    assert serve("ls", "--json").json == {"deployments": []}
    down = serve("down")
    assert down.exit_code == 0
    assert f"pid {info.pid}" in down.err
    assert has_ended(info.pid)
    assert serve("ls").exit_code == 4


def test_a_second_up_says_so_and_exits_0_detached_or_not(serve: Command) -> None:
    first = serve("up", "--detach", "--json").json
    for flags in ([], ["--detach"]):
        second = serve("up", *flags)
        assert second.exit_code == 0
        assert f"runs already at {first['url']} (pid {first['pid']})" in second.err
        assert "did not change it" not in second.err
    told = serve("up", "--port", "0", "--host", "127.0.0.1")
    assert told.exit_code == 0
    assert "--host and --port did not change it: end it with `serve down` first" in told.err


def test_two_ups_at_once_agree_on_one_platform(serve: Command) -> None:
    environment = serve.environment
    children = [
        subprocess.Popen(
            [*COMMAND, "up", "--detach"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    answers = [child.communicate(timeout=40) for child in children]
    assert [child.returncode for child in children] == [0, 0], answers
    assert answers[0][0] == answers[1][0]


def test_down_without_a_platform_says_so_and_exits_0(serve: Command) -> None:
    assert "no platform runs in" in serve("down").err
    assert serve("down", "--json").json == {"stopped": False, "pid": None}


def test_what_a_killed_platform_left_behind_does_not_count_as_running(serve: Command, folder: Path) -> None:
    pid = serve("up", "--detach", "--json").json["pid"]
    os.kill(pid, signal.SIGKILL)
    assert serve("down", "--json").json["stopped"] is False
    assert serve("up", "--detach", "--json").json["pid"] != pid


def test_down_never_signals_a_process_that_is_not_the_platform(serve: Command, folder: Path) -> None:
    home = Home(folder / "home")
    serve("up", "--detach")
    serve("down")
    with subprocess.Popen(["sleep", "60"]) as bystander:
        home.info_file.write_text(
            f'{{"url": "u", "admin_url": "u", "pid": {bystander.pid}, "version": "0", "started_wall_ns": 0}}'
        )
        assert serve("down", "--json").json["stopped"] is False
        assert bystander.poll() is None
        bystander.kill()


def test_a_platform_that_cannot_start_is_quoted(serve: Command) -> None:
    result = serve("up", "--detach", STAND_IN="broken")
    assert result.exit_code == 1
    assert "the price book is damaged: correct prices.yaml" in result.err
    assert '"level"' not in result.err
    assert "platform.log" in result.err


def test_a_platform_that_never_answers_is_ended_after_wait_and_exits_6(serve: Command, folder: Path) -> None:
    result = serve("up", "--detach", "--wait", "1s", "--json", STAND_IN="mute")
    assert result.exit_code == 6
    assert result.json["code"] == "wait_timeout"


def test_down_gives_up_waiting_after_wait_and_exits_6(serve: Command) -> None:
    pid = serve("up", "--detach", "--json", STAND_IN="stubborn").json["pid"]
    result = serve("down", "--wait", "0.2s")
    assert result.exit_code == 6
    assert f"pid {pid}" in result.err


def test_a_busy_port_is_named_with_the_flag_that_helps(serve: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        for flags in ([], ["--detach"]):
            result = serve("up", "--port", port, *flags)
            assert result.exit_code == 1
            assert f"port {port} of 127.0.0.1 is in use" in result.err
            assert "--port" in result.err


@pytest.mark.parametrize(
    ("flags", "environment", "sentence"),
    [
        (["--host", "no.such.host.invalid"], {}, "not an address of this machine"),
        (["--host", "192.0.2.1"], {}, "use --host 127.0.0.1"),
        (["--port", "70000"], {}, "65535"),
        ([], {"SERVE_PORT": "many"}, "SERVE_PORT"),
        (["--json"], {}, "--json needs --detach"),
        (["--detach", "--home", "/proc/nowhere"], {}, "choose another home with --home"),
        (["--detach", "--wait", "soon"], {}, "is not a duration"),
    ],
)
def test_up_refuses_what_cannot_work_with_a_remedy(
    serve: Command, flags: list[str], environment: dict[str, str], sentence: str
) -> None:
    result = serve("up", *flags, **environment)
    assert result.exit_code in (1, 2)
    assert sentence in result.err + result.out


def test_up_in_the_foreground_becomes_the_platform_itself(serve: Command, folder: Path) -> None:
    with subprocess.Popen([*COMMAND, "up"], env=serve.environment, stderr=subprocess.DEVNULL) as child:
        assert serve("up", "--detach").exit_code == 0  # waits for whoever starts
        info = running(Home(folder / "home"))
        assert info is not None
        child.send_signal(signal.SIGTERM)
        if info.pid == child.pid:
            child.wait(30)
        else:
            child.kill()


def test_a_deploy_that_cannot_mean_anything_starts_no_platform(
    serve: Command, folder: Path, model: Callable[..., Path]
) -> None:
    model()
    assert serve("deploy", "digits/model.onnx", "--idle", "abc").exit_code == 2
    assert running(Home(folder / "home")) is None


def test_deploy_starts_the_local_platform_where_none_runs(serve: Command, model: Callable[..., Path]) -> None:
    model()
    result = serve("deploy", "digits/model.onnx", "--json")
    assert result.exit_code == 0, result.err
    assert result.json["name"] == "digits"
    assert "started the platform at http://127.0.0.1:" in result.err
    assert serve("ls", "--json").json["deployments"][0]["name"] == "digits"
