"""Figures as people read them."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.cli.options import duration_s
from serve.cli.output import from_nano, milliseconds, moment, size


@given(st.integers(-(10**20), 10**20))
def test_money_is_exact_whatever_its_size(nano: int) -> None:
    text = from_nano(nano)
    assert Decimal(text) * 10**9 == nano
    assert not text.endswith(".")


def test_figures_keep_three_digits_and_their_unit() -> None:
    assert [milliseconds(value) for value in (None, 0.421, 31.25, 1204.4)] == ["-", "0.42 ms", "31.2 ms", "1,204 ms"]
    assert [size(value) for value in (None, 0, 1023, 1536, 5 << 30, 5 << 40)] == [
        "-", "0 B", "1023 B", "1.5 KiB", "5.0 GiB", "5120.0 GiB",
    ]  # fmt: skip


def test_a_time_that_is_none_is_printed_as_it_came() -> None:
    assert [moment(None), moment("some day")] == ["-", "some day"]


@pytest.mark.parametrize(("text", "seconds"), [("60", 60), ("60s", 60), ("2h", 7200), ("1d", 86400), ("1h30m", 5400)])
def test_durations_are_read_in_words(text: str, seconds: float) -> None:
    assert duration_s(text, "--wait") == seconds
