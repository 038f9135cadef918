from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.price_file import DEFAULT_FILE, PriceBookError, load_price_book
from billing.prices import COST_DENOMINATOR, PriceBook, Prices, apportion, round_half_even

DEFAULT = Prices(effective_ns=0, currency="USD", core_second_nano=24_000, gib_second_nano=2_500, request_nano=0)


def test_a_second_of_a_core_and_a_gibibyte_costs_the_listed_prices() -> None:
    assert DEFAULT.cost_numerator(1_000_000, 0) == 24_000 * COST_DENOMINATOR
    assert DEFAULT.cost_numerator(0, 1024 * 1_000_000) == 2_500 * COST_DENOMINATOR
    assert DEFAULT.cost_numerator(2_000_000, 512 * 1_000_000) == (48_000 + 1_250) * COST_DENOMINATOR


@given(*[st.integers(0, 10**15)] * 3, *[st.integers(0, 10**9)] * 3)
def test_a_cost_is_exact_until_it_is_rounded_once(
    core_us: int, mib_us: int, requests: int, core_nano: int, gib_nano: int, request_nano: int
) -> None:
    prices = Prices(0, "USD", core_nano, gib_nano, request_nano)
    exact = Fraction(core_us * core_nano, 10**6) + Fraction(mib_us * gib_nano, 1024 * 10**6) + requests * request_nano
    assert Fraction(prices.cost_numerator(core_us, mib_us, requests), COST_DENOMINATOR) == exact
    assert round_half_even(prices.cost_numerator(core_us, mib_us, requests)) == round(exact)


@given(st.integers(-(10**12), 10**12), st.integers(1, 10**4))
def test_rounding_is_half_to_even(numerator: int, denominator: int) -> None:
    assert round_half_even(numerator, denominator) == round(Fraction(numerator, denominator))
    half = (Decimal(numerator) / 2).quantize(Decimal(1), ROUND_HALF_EVEN)
    assert round_half_even(numerator, 2) == int(half)


@given(st.lists(st.integers(-(10**12), 10**12), max_size=50), st.integers(1, 10**7))
def test_printed_lines_sum_to_the_printed_total_and_each_is_within_one(lines: list[int], denominator: int) -> None:
    printed = apportion(lines, denominator)
    assert sum(printed) == round_half_even(sum(lines), denominator)
    for line, whole in zip(lines, printed, strict=True):
        assert abs(Fraction(line, denominator) - whole) < 1


def test_the_largest_remainders_are_rounded_up() -> None:
    assert apportion([33, 33, 34], 10) == [3, 3, 4]
    assert apportion([15, 18, 17], 10) == [1, 2, 2]


def test_the_price_in_force_is_the_latest_that_has_begun() -> None:
    old, new = DEFAULT, Prices(1000, "USD", 1, 1, 1)
    book = PriceBook([new, old])
    assert [book.at(wall_ns) for wall_ns in (-5, 0, 999, 1000, 5000)] == [old, old, old, new, new]
    assert book.changes_ns() == [1000]


def test_versions_name_exactly_the_figures() -> None:
    assert DEFAULT.version == Prices(0, "USD", 24_000, 2_500, 0).version
    others = [
        Prices(1, "USD", 24_000, 2_500, 0),
        Prices(0, "EUR", 24_000, 2_500, 0),
        Prices(0, "USD", 24_000, 2_500, 1),
    ]
    assert len({entry.version for entry in (DEFAULT, *others)}) == 4


def test_the_built_in_book_has_the_documented_prices(tmp_path: Path) -> None:
    assert load_price_book().entries == (DEFAULT,)
    assert load_price_book(tmp_path / "missing.yaml").entries == (DEFAULT,)
    assert DEFAULT_FILE.exists()


def test_a_book_of_dated_entries_is_read_in_utc(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(
        "prices:\n"
        "  - {from: 2026-01-01, currency: EUR}\n"
        "  - {from: '2026-02-01T02:00:00+02:00', currency: EUR, core_second: 30000, request: 5}\n"
        "  - {from: 2026-03-01T12:00:00, currency: EUR}\n"
    )
    days = [entry.effective_ns / 86_400e9 for entry in load_price_book(path).entries]
    assert days == [20454, 20485, 20513.5]
    assert load_price_book(path).entries[1].core_second_nano == 30_000
    assert load_price_book(path).currency == "EUR"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "dictionary"),
        ("prices: []", "at least 1 item"),
        ("prices: [{currency: USD}]", "prices.0.from"),
        ("prices: [{from: yesterday}]", "isoformat"),
        ("prices: [{from: 12}]", "write a date"),
        ("prices: [{from: 1812-01-01}]", "between 1970 and 2200"),
        ("prices: [{from: 2026-01-01, core_second: -1}]", "greater than or equal to 0"),
        ("prices: [{from: 2026-01-01, core_second: 0.5}]", "integer"),
        ("prices: [{from: 2026-01-01, core_sceond: 5}]", "core_sceond"),
        ("prices: [{from: 2026-01-01}, {from: 2027-01-01, currency: EUR}]", "mixes currencies"),
        ("prices: [{from: 2026-01-01}, {from: 2026-01-01}]", "same `from`"),
        ("prices: [", "while parsing"),
        ("prices: " + "[" * 3000, "nests deeper than 50 levels"),
    ],
)
def test_a_bad_book_is_refused_with_file_and_reason(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(PriceBookError, match=r"prices\.yaml") as caught:
        load_price_book(path)
    assert sentence in str(caught.value)
