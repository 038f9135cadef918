"""Receipts: what was measured, exact money, and a command that works when it is pasted."""

from __future__ import annotations

import dataclasses
import shlex
from decimal import Decimal

import pytest

from billing.prices import COST_DENOMINATOR, Prices
from serve.control.receipt import Measured, amount, curl_command, receipt
from serve.core.events import Phase
from serve.core.frames import NO_JSON_LENGTH
from tests.control.bench import PRICES, stored_revision
from tests.control.fakes import MS

REVISION = dataclasses.replace(stored_revision(3).revision, threads=2, memory_bytes=512 << 20)
MEASURED = Measured(12 * MS, {Phase.LOAD: 5 * MS, Phase.SPAWN: MS, Phase.INFER: 4 * MS}, [MS, 10 * MS, 2 * MS])
URL = "http://127.0.0.1:8000/v2/models/digits/infer"


def test_a_receipt_says_what_was_measured() -> None:
    answer = receipt(REVISION, 5, URL, MEASURED, PRICES, "curl …")
    assert answer["cold_start"] == {"total_ms": 12.0, "phases": {"spawn": 1.0, "load": 5.0, "infer": 4.0}}
    assert answer["warm_ms"] == {"p50": 2.0, "n": 3}
    assert (answer["name"], answer["revision"], answer["verified"]) == ("digits", 3, True)
    assert (answer["threads"], answer["concurrency"], answer["max_batch"]) == (2, 64, 32)
    assert answer["model"] == {"digest": REVISION.digest, "size_bytes": 5}
    assert answer["inputs"] == [{"name": "x", "datatype": "FP32", "shape": (-1, 4)}]
    assert "warning" not in answer


def test_costs_are_exactly_cores_and_memory_of_the_warm_time_and_memory_alone_when_idle() -> None:
    cost = receipt(REVISION, 5, URL, MEASURED, PRICES, "")["cost"]
    busy_s = Decimal(2)  # 1000 calls of 2 ms
    per_1000 = (2 * busy_s * 24_000 + Decimal("0.5") * busy_s * 2_500) / 10**9
    assert Decimal(cost["per_1000_calls"]) == per_1000
    assert Decimal(cost["per_idle_hour"]) == Decimal("0.5") * 3600 * 2_500 / 10**9
    assert (cost["currency"], cost["at_zero"]) == ("USD", "0")


def test_who_keeps_replicas_without_traffic_is_promised_no_zero() -> None:
    kept = dataclasses.replace(REVISION, spec=REVISION.spec.model_copy(update={"min": 1}))
    assert receipt(kept, 5, URL, MEASURED, PRICES, "")["cost"]["at_zero"] is None


def test_the_fee_of_a_request_is_in_the_price_of_a_thousand() -> None:
    with_fee = receipt(REVISION, 5, URL, MEASURED, Prices(0, "USD", 24_000, 2_500, 200), "")["cost"]
    without = receipt(REVISION, 5, URL, MEASURED, PRICES, "")["cost"]
    assert Decimal(with_fee["per_1000_calls"]) - Decimal(without["per_1000_calls"]) == Decimal("0.0002")


def test_what_did_not_answer_has_a_warning_and_no_latency() -> None:
    answer = receipt(REVISION, 5, URL, None, PRICES, "")
    assert answer["verified"] is False
    assert "--sample" in answer["warning"]
    assert answer["cold_start"] is answer["warm_ms"] is answer["cost"]["per_1000_calls"] is None


@pytest.mark.parametrize(
    ("nano", "text"), [(0, "0"), (1, "0.000000001"), (10**9, "1"), (10**10, "10"), (1_500_000_000, "1.5")]
)
def test_amounts_are_plain_decimals(nano: int, text: str) -> None:
    assert amount(nano * COST_DENOMINATOR) == text


def test_a_curl_survives_the_shell() -> None:
    words = shlex.split(curl_command(URL, b'{"it\'s": "$HOME `x`"}', NO_JSON_LENGTH, None))
    assert words[-1] == '{"it\'s": "$HOME `x`"}'
    assert URL in words


def test_a_curl_for_binary_tensors_names_the_length_of_its_json() -> None:
    words = shlex.split(curl_command(URL, b'{"binary_data_output":true}\0\0', 27, "/home/a b/digits.bin"))
    assert words[-1] == "@/home/a b/digits.bin"
    assert "inference-header-content-length: 27" in words
    assert "--output" in words
