"""What `serve` costs and says before it does anything."""

from __future__ import annotations

import subprocess
import sys

import pytest

from serve.core.version import version
from tests.cli.conftest import Command

HEAVY = {"pydantic", "pydantic_core", "starlette", "numpy", "urllib3", "yaml", "orjson", "asyncio", "serve.core.spec"}

_HELP = """
import sys
from serve.cli.main import app
try:
    app(["--help"], prog_name="serve")
except SystemExit as end:
    assert end.code == 0
print(*sys.modules, sep="\\n", file=sys.stderr)
"""


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", _HELP], capture_output=True, text=True, check=True)
    assert "deploy" in done.stdout
    assert HEAVY & set(done.stderr.split()) == set()


def test_the_installed_command_is_this_one(alone: Command) -> None:
    assert alone("--version").out.strip() == version()


def test_no_command_at_all_shows_the_help_as_a_usage_error(alone: Command) -> None:
    result = alone()
    assert result.exit_code == 2
    assert "Usage: serve" in result.out + result.err


@pytest.mark.parametrize("arguments", [["ls", "--nope"], ["status"], ["nope"], ["deploy", "m", "--min", "few"]])
def test_usage_errors_exit_2_and_are_json_when_json_is_asked_for(alone: Command, arguments: list[str]) -> None:
    people, program = alone(*arguments), alone(*arguments, "--json")
    assert people.exit_code == program.exit_code == 2
    assert people.out == ""
    assert program.json["code"] == "usage"
    assert program.err == ""


def test_a_reader_that_leaves_is_no_traceback(alone: Command) -> None:
    script = "import sys; from serve.cli.main import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-P", "-c", script, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert "Traceback" not in child.stderr.read()
