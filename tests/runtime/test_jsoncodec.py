"""JSON is the same with and without orjson."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from runtime import jsoncodec


@pytest.fixture(name="codec", params=["orjson", "standard library"])
def fixture_codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, once as it is and once as in an environment without orjson."""
    if request.param != "orjson":
        monkeypatch.setattr(jsoncodec, "orjson", None)
    return jsoncodec  # type: ignore[return-value]


rows = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.uint64, np.int8, np.bool_]),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
same_codec = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@same_codec
@given(rows=rows)
def test_rows_are_written_apart_and_to_the_last_bit(codec: Any, rows: Any) -> None:
    texts = codec.dumps_rows(rows)
    assert len(texts) == len(rows)
    for text, row in zip(texts, rows, strict=True):
        np.testing.assert_array_equal(np.array(json.loads(b"[%b]" % text), dtype=rows.dtype), row)


def test_rows_that_do_not_lie_together_are_written_all_the_same(codec: Any) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
    assert [json.loads(b"[%b]" % text) for text in codec.dumps_rows(values)] == values.tolist()


def test_no_rows_are_no_text(codec: Any) -> None:
    assert codec.dumps_rows(np.empty((0, 3), np.float32)) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"a": [1, 2.5, null, true, "\\u00e9"]}', {"a": [1, 2.5, None, True, "é"]}),
        (b"[Infinity, -Infinity]", [float("inf"), float("-inf")]),
        (b"18446744073709551615", 2**64 - 1),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
    ],
)
def test_json_is_read_with_the_tokens_of_inference_servers(codec: Any, text: bytes, value: Any) -> None:
    assert codec.loads(text) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[" * 100_000, "nesting is too deep"),
        (b'"\\ud800"', "lone surrogate"),
        (b"[1e999]", "1e999"),
        (b"\xff", "not UTF-8"),
        (b"", "Expecting value"),
        ('{"a": 1}'.encode("utf-16"), "UTF-8"),
    ],
)
def test_what_is_no_json_is_refused_with_words(codec: Any, text: bytes, words: str) -> None:
    with pytest.raises(jsoncodec.JsonError, match=words):
        codec.loads(text)


@pytest.mark.parametrize("value", [{"a": [1, "é\n\u2028"]}, [], "x", {"b": None}])
def test_values_are_written_as_they_are_read(codec: Any, value: Any) -> None:
    assert codec.loads(codec.dumps(value)) == value
