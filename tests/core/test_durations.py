"""Durations as people write them."""

from __future__ import annotations

import pytest

from serve.core.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("60", 60),
        ("60s", 60),
        ("5m", 300),
        ("1h30m", 5400),
        (" 1 d ", 86_400),
        ("1.5h", 5400),
        ("500ms", 0.5),
        ("-5s", -5),
    ],
)
def test_a_duration_is_its_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "1e3s", "inf", "nan", ".", "9" * 60, "9" * 64 + "s", "99999999999d", "1" * 65]
)
def test_what_is_no_duration_or_beyond_reason_is_none(text: str) -> None:
    assert parse_duration(text) is None


@pytest.mark.parametrize("space", [" ", "\x1c", "\u3000", "\n"])
@pytest.mark.timeout(20)
def test_white_space_does_not_make_reading_slow(space: str) -> None:
    """One such text in a deploy kept the platform's loop busy for half a minute."""
    assert parse_duration("8mo" + space * 61 + "886") is None
    assert parse_duration("8mo" + space * 57 + "886") is None
