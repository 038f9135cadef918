"""What is quoted from a dead replica's log is what it complained of, not what it told of its work."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import pytest

from autoscaler.drivers.log import ReplicaLog
from serve.core.logs import JsonFormatter


def entry(level: int, message: str, exception: BaseException | None = None) -> str:
    """Return a line as the replica's own logging writes it."""
    about = (type(exception), exception, exception.__traceback__) if exception is not None else None
    return JsonFormatter().format(logging.LogRecord("runtime", level, "x.py", 1, message, None, about)) + "\n"


INFO = entry(logging.INFO, "model.json loaded by scripted 1 in 5.9 ms")
WARNING = entry(logging.WARNING, "the batch was split")
ERROR = entry(logging.ERROR, "the engine gave up")


@pytest.mark.parametrize(
    ("written", "quoted"),
    [
        ("", ""),
        (INFO, ""),
        (ERROR + INFO, ""),
        ("loading\n" + INFO, ""),
        (INFO + ERROR, "the engine gave up"),
        (WARNING + ERROR, "the engine gave up"),
        (ERROR + WARNING, "the batch was split"),
        (INFO + "libfoo: cannot\n" + ERROR, "libfoo: cannot | the engine gave up"),
        (INFO + WARNING + "one\n" + ERROR + "two\n", "one | the engine gave up | two"),
        (INFO + "terminate called\n\n  what():  no\x1b[2J\n", "terminate called | what():  no [2J"),
        (INFO + '{"level": "info"}\n{"a\n[1]\n', '{"level": "info"} | {"a | [1]'),
        ("".join(f"{number}\n" for number in range(9)), "3 | 4 | 5 | 6 | 7 | 8"),
        (INFO + "a\nFatal Python error: Aborted\n" + "frame\n" * 9, "Fatal Python error: Aborted" + " | frame" * 5),
        (INFO + "y" * 40_000 + "\nthe end\n", "the end"),
    ],
)
def test_complaints_after_the_last_line_about_work_are_quoted(tmp_path: Path, written: str, quoted: str) -> None:
    assert words(tmp_path, written) == quoted


def test_of_an_error_with_a_long_traceback_the_message_is_quoted(tmp_path: Path) -> None:
    assert words(tmp_path, INFO + entry(logging.ERROR, "it failed", ValueError("x" * 20_000))) == "it failed"


def test_a_line_without_end_is_quoted_shortened(tmp_path: Path) -> None:
    quoted = words(tmp_path, "x" * 100_000 + "the end")
    assert quoted.endswith("the end")
    assert len(quoted) == 4096


def words(tmp_path: Path, written: str) -> str:
    file = tmp_path / "a.log"
    file.write_text("an earlier replica's words\n")
    with contextlib.closing(ReplicaLog(file)) as log:
        os.write(log.fd, written.encode())
        return log.last_words()
