from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import pytest

from billing import records
from billing.journal import Journal
from billing.ledger import Ledger
from billing.prices import PriceBook, Prices, round_half_even
from billing.report import PARTS, Report, report, request
from serve.core.clock import NS_PER_S, VirtualClock
from tests.billing.replay import PRICES, Recorded

BOOK = PriceBook([PRICES])
HOUR_NS = 3600 * NS_PER_S
BEGIN_NS = 500_000 * HOUR_NS
"""Wall time at the start of the story: the beginning of an hour, 2027-01-15 08:00 UTC."""


class Story:
    """Two deployments of two teams over some hours, in a ledger."""

    def __init__(self, folder: Path) -> None:
        self.clock = VirtualClock(10**12, BEGIN_NS)
        self.ledger = folder / "ledger.db"
        self.journal = Journal(folder / "journal", "aaaaaaaa", self.clock)
        self.journal.append(records.price(PRICES, self.journal.origin, mono_ns=0, wall_ns=0))

    def life(self, deployment: str, labels: dict[str, str], requests: int = 3, idle_s: float = 60) -> list[str]:
        """Cold 0.1 s, each request 0.02 s, the last one a 500, idle, drained 0.01 s."""
        replica = Recorded(self.journal, self.clock, deployment, labels)
        replica.start(0.1)
        ids = [replica.serve(0.02, status=500 if number == requests - 1 else 200) for number in range(requests)]
        steps = max(1, int(idle_s // 30))
        for _ in range(steps):
            self.clock.advance(idle_s / steps)
            replica.checkpoint()
        replica.drain()
        self.clock.advance(0.01)
        replica.exit()
        return ids

    def sync(self) -> None:
        self.journal.flush()
        with closing(Ledger(self.ledger)) as ledger:
            ledger.ingest(self.ledger.parent / "journal")

    def bill(self, by: str, since_ns: int | None = None, until_ns: int | None = None, book: PriceBook = BOOK) -> Report:
        return report(self.ledger, by, since_ns, until_ns, book)


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    told = Story(tmp_path)
    told.life("digits", {"team": "vision"})
    told.life("voice", {"team": "audio"}, requests=5)
    told.life("digits", {"team": "vision"}, idle_s=7200)
    told.life("spare", {})
    told.sync()
    yield told
    told.journal.close()


def test_the_bill_by_deployment_counts_requests_and_machine_time(story: Story) -> None:
    bill = story.bill("deployment")
    assert [row.group for row in bill.rows] == ["digits", "spare", "voice"]
    digits = bill.rows[0]
    assert (digits.requests, digits.charged, digits.rows, digits.cold_starts, digits.replicas) == (6, 4, 6, 2, 2)
    assert digits.core_us == {
        "cold": 2 * 200_000,
        "billed": 2 * 6 * 20_000,
        "lost": 0,
        "idle": 2 * 7_260_000_000,
        "drain": 2 * 20_000,
    }
    assert digits.mib_us["idle"] == 48 * 7_260_000_000


def test_idle_and_drain_cost_memory_only_and_cold_and_busy_cost_cores_too(story: Story) -> None:
    digits = story.bill("deployment").rows[0]
    mib_nano = Fraction(2_500, 1024 * 10**6)
    core_nano = Fraction(24_000, 10**6)
    assert abs(digits.cost_nano["idle"] - 48 * 7_260_000_000 * mib_nano) < 1
    assert abs(digits.cost_nano["drain"] - 48 * 20_000 * mib_nano) < 1
    assert abs(digits.cost_nano["cold"] - 200_000 * (48 * mib_nano + 2 * core_nano)) < 1
    assert abs(digits.cost_nano["billed"] - 120_000 * (48 * mib_nano + 2 * core_nano)) < 1
    assert digits.cost_nano["request"] == 4 * 7


@pytest.mark.parametrize("by", ["deployment", "revision", "label:team", "label:nobody", "hour", "day"])
def test_rows_and_columns_sum_to_the_same_total_however_it_is_grouped(story: Story, by: str) -> None:
    whole, bill = story.bill("deployment").total.as_json(), story.bill(by)
    assert bill.total.as_json() == whole | {
        key: value for key, value in bill.total.as_json().items() if key.endswith("cost_nano") and key != "cost_nano"
    }
    for key, value in bill.total.as_json().items():
        if key != "group":
            assert sum(row.as_json()[key] for row in bill.rows) == value
    for row in [*bill.rows, bill.total]:
        assert sum(row.cost_nano.values()) == row.total_nano


def test_groups_are_named_by_what_they_are(story: Story) -> None:
    assert [row.group for row in story.bill("revision").rows] == ["digits-r1", "spare-r1", "voice-r1"]
    assert [row.group for row in story.bill("label:team").rows] == ["audio", "vision", None]
    hours = [row.group for row in story.bill("hour").rows]
    assert hours == ["2027-01-15T08:00:00Z", "2027-01-15T09:00:00Z", "2027-01-15T10:00:00Z"]
    assert [row.group for row in story.bill("day").rows] == ["2027-01-15"]


def test_a_period_cut_anywhere_sums_to_the_whole(story: Story) -> None:
    borders = [None, BEGIN_NS + 30_000_000_123, BEGIN_NS + HOUR_NS, BEGIN_NS + 5_000 * NS_PER_S, None]
    pieces = [story.bill("deployment", since_ns, until_ns).total for since_ns, until_ns in itertools.pairwise(borders)]
    whole = story.bill("deployment").total
    for part in PARTS:
        assert sum(piece.mib_us[part] for piece in pieces) == whole.mib_us[part]
    for count in ("requests", "charged", "cold_starts", "replicas"):
        assert sum(getattr(piece, count) for piece in pieces) == getattr(whole, count)


def test_a_price_applies_from_its_date_on_in_the_middle_of_a_life(story: Story) -> None:
    dearer = Prices(BEGIN_NS + HOUR_NS, "USD", 24_000, 5_000, 7)
    hours = [story.bill("hour", book=book).rows for book in (BOOK, PriceBook([PRICES, dearer]))]
    assert hours[0][0].cost_nano["idle"] == hours[1][0].cost_nano["idle"]
    for number in (1, 2):
        assert abs(hours[1][number].cost_nano["idle"] - 2 * hours[0][number].cost_nano["idle"]) <= 2


def test_a_replica_that_lives_is_on_the_bill_up_to_its_last_checkpoint(story: Story) -> None:
    replica = Recorded(story.journal, story.clock, "live")
    replica.start(1)
    story.clock.advance(10)
    replica.checkpoint()
    story.clock.advance(3)
    story.sync()
    live = next(row for row in story.bill("deployment").rows if row.group == "live")
    assert live.mib_us == {"cold": 48_000_000, "billed": 0, "lost": 0, "idle": 480_000_000, "drain": 0}


def test_an_empty_ledger_gives_an_empty_bill(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.db").close()
    bill = report(tmp_path / "ledger.db", "deployment", None, None, BOOK)
    assert bill.rows == []
    assert bill.as_json()["total"]["cost_nano"] == 0


@pytest.mark.parametrize("by", ["", "label:", "team", "minute"])
def test_an_unknown_grouping_names_the_choices(story: Story, by: str) -> None:
    with pytest.raises(ValueError, match="deployment, revision, label:KEY, hour or day"):
        story.bill(by)


def test_csv_and_json_say_the_same_with_the_same_keys(story: Story) -> None:
    bill = story.bill("label:team")
    rows = list(csv.DictReader(io.StringIO(bill.as_csv())))
    assert rows == [
        {key: "" if value is None else str(value) for key, value in ({"currency": "USD"} | row).items()}
        for row in bill.as_json()["rows"]
    ]
    assert list(rows[0])[:4] == ["currency", "group", "requests", "charged"]


@pytest.mark.parametrize("value", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_a_label_never_reaches_a_spreadsheet_as_a_formula(tmp_path: Path, value: str) -> None:
    story = Story(tmp_path)
    story.life("digits", {"team": value})
    story.sync()
    bill = story.bill("label:team")
    (row,) = csv.DictReader(io.StringIO(bill.as_csv()))
    assert row["group"] == "'" + value
    assert bill.rows[0].group == value
    story.journal.close()


def test_dates_beyond_what_a_ledger_can_hold_are_as_good_as_no_limit(story: Story) -> None:
    far_ns = 1 << 80
    assert story.bill("day", -far_ns, far_ns).rows == story.bill("day").rows
    assert story.bill("deployment", far_ns).rows == story.bill("deployment", None, -far_ns).rows == []


def test_one_request_can_be_asked_for_with_its_cost(story: Story) -> None:
    first, second, failed = story.life("asked", {"team": "qa"})
    story.sync()
    found = request(story.ledger, first)
    assert found is not None
    assert (found["deployment"], found["labels"], found["cold"], found["cold_us"]) == (
        "asked",
        {"team": "qa"},
        True,
        100_000,
    )
    assert (
        found["cost_nano"]
        == round_half_even(PRICES.cost_numerator(2 * 120_000, 48 * 120_000, 1))
        == found["charged_nano"]
    )
    assert found["cost_nano"] == found["cold_cost_nano"] + found["busy_cost_nano"] + found["request_cost_nano"]
    warm, broken = request(story.ledger, second), request(story.ledger, failed)
    assert warm is not None
    assert broken is not None
    assert (warm["cold_cost_nano"], warm["request_cost_nano"]) == (0, 7)
    assert (broken["charged"], broken["reason"], broken["charged_nano"], broken["request_cost_nano"]) == (
        False,
        "error",
        0,
        0,
    )
    assert broken["cost_nano"] > 0, "a failed request still used the machine"
    assert request(story.ledger, "nobody-1") is None


def test_the_costs_of_requests_and_of_the_rest_sum_to_the_bill(story: Story) -> None:
    ids = story.life("sums", {}, requests=4)
    story.sync()
    bill = next(row for row in story.bill("deployment").rows if row.group == "sums")
    found = [request(story.ledger, request_id) or {} for request_id in ids]
    of_requests = sum(record["cost_nano"] for record in found)
    on_bill = bill.cost_nano["cold"] + bill.cost_nano["billed"] + bill.cost_nano["request"]
    assert abs(of_requests - on_bill) <= len(ids), "each is rounded once"


def test_inferences_of_the_platforms_own_cost_what_they_used_and_are_nobodys_requests(tmp_path: Path) -> None:
    story = Story(tmp_path)
    replica = Recorded(story.journal, story.clock, "digits")
    replica.start(0.1)
    replica.probe(0.5)
    replica.serve(0.25)
    replica.drain()
    replica.exit()
    story.sync()
    total = story.bill("deployment").total
    assert (total.requests, total.charged, total.probes, total.cold_starts, total.rows) == (1, 1, 1, 0, 1)
    assert total.as_json()["uncharged"] == 0
    assert total.core_us["billed"] == 2 * 750_000
    story.journal.close()
