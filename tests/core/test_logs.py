"""JSON logs: one valid object a line, whatever is logged."""

import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.core import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure("INFO", stream)
    yield stream
    root.handlers[:] = before[0]
    root.setLevel(before[1])


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().split("\n")[:-1]]


def test_a_line_has_time_level_logger_message_and_the_given_ids(stream: io.StringIO) -> None:
    logging.getLogger("activator.gate").info("queue of %s is full", "digits", extra={"request_id": "w-1", "count": 3})
    [line] = lines(stream)
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {
        "level": "INFO",
        "logger": "activator.gate",
        "message": "queue of digits is full",
        "request_id": "w-1",
        "count": 3,
    }


@pytest.mark.parametrize(
    "value",
    [
        "two\nlines \x00 \x1b[31m\u2028",
        b"\xff\x00",
        "file-\udcff.onnx",
        2**70,
        float("nan"),
        float("inf"),
        {1: "a", (2, 3): "b", None: {4}},
        Path("/model.onnx"),
        ValueError("odd"),
        np.float32(1.5),
        object(),
        {"deep": [{"er": b"\x80"}]},
    ],
    ids=lambda value: type(value).__name__,
)
def test_odd_values_still_make_one_line_of_valid_json(stream: io.StringIO, value: object) -> None:
    logging.getLogger("x").warning("odd: %s", value, extra={"value": value})
    assert stream.getvalue().count("\n") == 1
    [line] = lines(stream)
    assert line["level"] == "WARNING"
    assert "value" in line


def test_a_value_that_holds_itself_still_makes_a_line(stream: io.StringIO) -> None:
    endless: list[Any] = []
    endless.append(endless)
    logging.getLogger("x").warning("odd", extra={"value": endless})
    [line] = lines(stream)
    assert line["message"] == "odd"


def test_a_traceback_is_one_key_of_the_line(stream: io.StringIO) -> None:
    try:
        int("no such\nmodel")
    except ValueError:
        logging.getLogger("x").exception("failed")
    [line] = lines(stream)
    assert line["exception"].splitlines()[0] == "Traceback (most recent call last):"
    assert "ValueError" in line["exception"]


def test_lines_below_the_level_are_left_out_and_there_is_one_handler(stream: io.StringIO) -> None:
    logs.configure("ERROR", stream)
    logging.getLogger("x").info("chatter")
    logging.getLogger("x").error("once")
    assert [line["message"] for line in lines(stream)] == ["once"]
