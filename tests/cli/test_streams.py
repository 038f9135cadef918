"""Streams that are closed, full, or left by their reader: a sentence at most, never a traceback."""

from __future__ import annotations

import subprocess

import pytest

from tests.cli.conftest import COMMAND, Result, Served


def shell(served: Served, redirection: str, *arguments: str) -> Result:
    """Run the command with a redirection of the shell, such as `>&-`."""
    done = subprocess.run(
        ["bash", "-c", f'"$@" {redirection}', "bash", *COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=served.serve.environment,
        timeout=40,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def is_one_sentence(text: str) -> bool:
    return text.startswith("error: ") and text.count("\n") == 1


@pytest.mark.parametrize("redirection", [">&-", "> /dev/full"])
@pytest.mark.parametrize("arguments", [["ls"], ["ls", "--json"], ["status", "nobody", "--json"], ["bill", "--csv"]])
def test_a_stdout_that_takes_nothing_is_one_sentence_and_exit_1(
    served: Served, redirection: str, arguments: list[str]
) -> None:
    served.state.deployments["digits"] = {"name": "digits", "state": "cold", "revision": 1, "replicas": 0}
    result = shell(served, redirection, *arguments)
    assert result.exit_code == 1
    assert is_one_sentence(result.err), result.err


def test_a_closed_stdout_is_said_before_anything_is_done(served: Served) -> None:
    assert "stdout is closed" in shell(served, ">&-", "ls").err
    assert served.state.calls == []


def test_a_closed_stdin_is_one_sentence_and_exit_1(served: Served) -> None:
    result = shell(served, "<&-", "predict", "digits", "--input", "-")
    assert result.exit_code == 1
    assert is_one_sentence(result.err), result.err
    assert "stdin, which is closed" in result.err
    assert "--yes" in shell(served, "<&-", "delete", "digits").err


def test_narration_for_a_closed_stderr_goes_nowhere_and_not_to_stdout(served: Served) -> None:
    result = shell(served, "2>&-", "ls")
    assert (result.exit_code, result.out, result.err) == (0, "", "")


@pytest.mark.parametrize("arguments", [["bill", "--csv"], ["ls", "--json"]])
def test_a_reader_that_leaves_is_told_nothing(served: Served, arguments: list[str]) -> None:
    result = shell(served, "> >(exec true)", *arguments)
    assert result.err == ""
    assert result.exit_code in (0, 1)
