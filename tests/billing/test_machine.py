"""The lines of the machine: what the platform takes is measured, the rest is told, and clocks may be set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import billing.journal
from billing.journal import Journal
from billing.ledger import Ledger, open_read_only
from billing.lines import LINES
from billing.machine import PLATFORM, ZYGOTE, MachineMeter, Reading
from billing.prices import PriceBook
from billing.report import report
from billing.verify import Verification, verify
from serve.core.clock import NS_PER_S, VirtualClock
from tests.billing.replay import PRICES, Recorded, Tenured

HOUR_NS = 3600 * NS_PER_S
BEGIN_NS = 1_700_000_000 * NS_PER_S // HOUR_NS * HOUR_NS
PID = (7, 1)


class Home:
    """A home whose platforms follow each other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ledger = folder / "journal", folder / "ledger.db"
        self.clock = VirtualClock(10**12, BEGIN_NS)
        self.journals: list[Journal] = []

    def open(self, writer: str, **resources: int) -> tuple[Journal, Tenured]:
        journal = Journal(self.folder, writer, self.clock)
        self.journals.append(journal)
        return journal, Tenured(journal, self.clock, **resources)

    def machine(self, since_ns: int | None = None, until_ns: int | None = None) -> dict[str, Any]:
        for journal in self.journals:
            journal.flush()
        with closing(Ledger(self.ledger)) as ledger:
            ledger.ingest(self.folder)
        billed = report(self.ledger, "hour", since_ns, until_ns, PriceBook([PRICES])).as_json()
        result: dict[str, Any] = billed["machine"]
        return result

    def verify(self) -> Verification:
        self.machine()
        return verify(self.ledger, self.folder)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    opened = Home(tmp_path)
    yield opened
    for journal in opened.journals:
        journal.close()


def lines(machine: dict[str, Any]) -> dict[str, tuple[int, int]]:
    return {line["line"]: (line["core_us"], line["mib_us"]) for line in machine["lines"]}


def test_memory_counts_from_one_reading_to_the_next_and_processor_time_as_it_grew() -> None:
    meter = MachineMeter(0, 2, 100, {PLATFORM: [Reading(PID, 900, 10 << 20)]})
    meter.sample(1_000_999, {PLATFORM: [Reading(PID, 950, 20 << 20)], ZYGOTE: [Reading((8, 1), 30, (5 << 20) + 1)]})
    state = meter.sample(3_000_000, {PLATFORM: [Reading(PID, 970, 20 << 20)], ZYGOTE: []})
    assert (state.platform_cpu_us, state.platform_mib_us) == (70, 10 * 1000 + 20 * 2000)
    assert (state.zygote_cpu_us, state.zygote_mib_us, state.zygote_mib) == (30, 6 * 2000, 0)


def test_a_process_that_replaces_another_is_counted_from_its_own_begin_even_with_the_same_pid() -> None:
    meter = MachineMeter(0, 2, 100, {PLATFORM: [Reading(PID, 5000, 0)]})
    meter.sample(10, {PLATFORM: [Reading((7, 2), 40, 0)]})
    assert meter.sample(20, {PLATFORM: [Reading((7, 2), 60, 0)]}).platform_cpu_us == 60


def test_figures_that_go_back_take_nothing_away() -> None:
    meter = MachineMeter(1000, 2, 100, {PLATFORM: [Reading(PID, 50, 1 << 20)]})
    meter.sample(5000, {PLATFORM: [Reading(PID, 40, 1 << 20)]})
    state = meter.sample(4000, {PLATFORM: [Reading(PID, 60, 1 << 20)]})
    assert (state.platform_cpu_us, state.platform_mib_us) == (10, 4)


def test_every_line_is_there_and_all_of_them_are_the_machines_resources_times_its_time(home: Home) -> None:
    journal, tenure = home.open("aaaaaaaa", cores=4, memory_mib=1000)
    replica = Recorded(journal, home.clock, memory_mib=48)
    replica.start(1)
    replica.serve(0.5)
    home.clock.advance(2)
    tenure.held_mib[PLATFORM], tenure.cpu_us[PLATFORM] = 60, 123_456
    tenure.write()
    home.clock.advance(6.5)
    replica.drain()
    replica.exit()
    tenure.write(ended=True)
    machine = home.machine()
    assert lines(machine) == {
        "deployments": (2 * 1_500_000, 48 * 10_000_000),
        "platform": (123_456, 60 * 6_500_000),
        "zygote": (0, 0),
        "pool": (0, 0),
        "cache": (0, 0),
        "unallocated": (40_000_000 - 3_000_000 - 123_456, 10_000_000_000 - 480_000_000 - 390_000_000),
        "overcommitted": (0, 0),
    }
    assert tuple(lines(machine)) == LINES
    assert (machine["total"]["core_us"], machine["total"]["mib_us"]) == (40_000_000, 10_000_000_000)
    assert sum(line["cost_nano"] for line in machine["lines"]) == machine["total"]["cost_nano"]


def test_what_was_granted_twice_is_taken_back_on_a_line_of_its_own(home: Home) -> None:
    journal, _ = home.open("aaaaaaaa", cores=2, memory_mib=60)
    replicas = [Recorded(journal, home.clock, memory_mib=48) for _ in range(2)]
    home.clock.advance(1)
    for replica in replicas:
        replica.exit("crashed")
    machine = home.machine()
    assert lines(machine)["deployments"] == (4_000_000, 96_000_000)
    assert lines(machine)["overcommitted"] == (-2_000_000, -36_000_000)
    assert lines(machine)["unallocated"] == (0, 0)
    assert home.verify().ok


def test_platforms_of_a_home_add_up_and_the_time_between_them_is_nobodys(home: Home) -> None:
    for number, writer in enumerate(("bbbbbbbb", "aaaaaaaa")):
        _, tenure = home.open(writer, cores=1 + number, memory_mib=10)
        home.clock.advance(5)
        tenure.write(ended=True)
        home.clock.advance(60)
    machine = home.machine()
    assert [tenure["writer"] for tenure in machine["tenures"]] == ["bbbbbbbb", "aaaaaaaa"]
    assert machine["gap_us"] == 60_000_000
    assert (machine["total"]["core_us"], machine["total"]["mib_us"]) == (15_000_000, 100_000_000)
    assert home.verify().ok


def test_after_a_crash_a_tenure_ends_with_the_last_record_of_whatever_kind(home: Home) -> None:
    journal, tenure = home.open("aaaaaaaa", cores=1, memory_mib=100)
    tenure.held_mib[ZYGOTE] = 7
    tenure.write()
    replica = Recorded(journal, home.clock)
    replica.start(1)
    home.clock.advance(9)
    replica.checkpoint()
    home.clock.advance(300)
    _, next_tenure = home.open("bbbbbbbb")
    home.clock.advance(1)
    next_tenure.write()
    machine = home.machine()
    assert machine["tenures"][0]["elapsed_us"] == 10_000_000
    assert not machine["tenures"][0]["ended"]
    assert lines(machine)["zygote"] == (0, 70_000_000)
    assert machine["gap_us"] == 300_000_000


@pytest.mark.parametrize("steps_s", [(7200.0, -7200.0), (-7200.0, 7200.0), (86_400.0, 3.0), (-5.0, -86_400.0)])
def test_a_wall_clock_that_is_set_moves_no_duration_tenure_or_bill(tmp_path: Path, steps_s: tuple[float, ...]) -> None:
    def lived(folder: Path, steps: tuple[float, ...]) -> tuple[Home, dict[str, Any]]:
        home = Home(folder)
        journal, tenure = home.open("aaaaaaaa")
        replica = Recorded(journal, home.clock)
        replica.start(10)
        for step in steps:
            replica.serve(30)
            home.clock.step_wall(step)
            replica.checkpoint()
            tenure.write()
        replica.exit()
        tenure.write(ended=True)
        return home, home.machine()

    (plain, expected), (moved, machine) = lived(tmp_path / "a", (0.0, 0.0)), lived(tmp_path / "b", steps_s)
    assert lines(machine) == lines(expected)
    assert machine["total"] == expected["total"]
    assert machine["tenures"][0]["elapsed_us"] == expected["tenures"][0]["elapsed_us"] == 70_000_000
    assert moved.verify().ok
    whole, other = (report(home.ledger, "day", None, None, PriceBook([PRICES])).total for home in (plain, moved))
    assert (whole.core_us, whole.mib_us, whole.cost_nano) == (other.core_us, other.mib_us, other.cost_nano)
    for one in (plain, moved):
        one.journals[0].close()


def test_time_falls_into_the_hour_that_the_clock_showed_before_and_after_it_was_set(home: Home) -> None:
    journal, tenure = home.open("aaaaaaaa", cores=2, memory_mib=100)
    replica = Recorded(journal, home.clock)
    replica.start(100)
    replica.checkpoint()
    home.clock.step_wall(3 * 3600)
    replica.checkpoint()
    home.clock.advance(50)
    replica.exit()
    tenure.write(ended=True)
    whole = home.machine()
    hours = [home.machine(BEGIN_NS + hour * HOUR_NS, BEGIN_NS + (hour + 1) * HOUR_NS) for hour in range(4)]
    assert [hour["total"]["core_us"] for hour in hours] == [200_000_000, 0, 0, 100_000_000]
    assert [lines(hour)["deployments"][1] for hour in hours] == [4_800_000_000, 0, 0, 2_400_000_000]
    assert whole["total"]["core_us"] == 300_000_000


def test_a_clock_that_drifts_by_less_than_a_second_is_not_taken_as_set(home: Home) -> None:
    _, tenure = home.open("aaaaaaaa")
    for _ in range(10):
        home.clock.advance(60)
        home.clock.step_wall(0.09)
        tenure.write()
    home.machine()
    with closing(open_read_only(home.ledger)) as connection:
        assert connection.execute("SELECT count(*) FROM moments").fetchone()[0] == 1


def test_monotonic_times_of_different_boots_are_never_compared(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = home.open("aaaaaaaa", cores=1, memory_mib=1)
    home.clock.advance(10)
    first.write()
    monkeypatch.setattr(billing.journal, "boot_id", lambda: "the-next-boot")
    home.clock = VirtualClock(4 * NS_PER_S, home.clock.wall_ns() + 30 * NS_PER_S)
    _, second = home.open("bbbbbbbb", cores=1, memory_mib=1)
    home.clock.advance(5)
    second.write(ended=True)
    machine = home.machine()
    assert machine["total"]["core_us"] == 15_000_000
    assert machine["gap_us"] == 30_000_000
    assert home.verify().problems == []


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        ("UPDATE machine SET platform_mib_us = 0 WHERE mono_ns = (SELECT max(mono_ns) FROM machine)", "went back"),
        ("UPDATE machine SET zygote_cpu_us = -1", "is negative"),
        ("UPDATE machine SET started_mono_ns = started_mono_ns + 2000000000", "began before the tenure"),
        (
            "INSERT INTO machine SELECT 'bbbbbbbb', mono_ns, started_mono_ns, 1, 1, 0, 0, 0, 0, 0, 0, 0 FROM machine",
            "had",
        ),
    ],
)
def test_a_tenure_that_cannot_be_is_found(home: Home, harm: str, sentence: str) -> None:
    journal, tenure = home.open("aaaaaaaa")
    tenure.held_mib[PLATFORM] = 5
    tenure.write()
    replica = Recorded(journal, home.clock)
    for _ in range(3):
        home.clock.advance(1)
        tenure.write()
    replica.exit()
    tenure.write()
    home.machine()
    with closing(Ledger(home.ledger)) as ledger:
        ledger.connection.execute("INSERT INTO writers VALUES ('bbbbbbbb', (SELECT boot FROM writers), 1, 1)")
        ledger.connection.execute("INSERT INTO moments SELECT 'bbbbbbbb', mono_ns, wall_ns FROM moments")
        ledger.connection.execute(harm)
    problems = verify(home.ledger, home.folder).problems
    assert any(sentence in problem for problem in problems), problems


def test_a_process_that_could_not_be_read_for_a_moment_is_not_counted_twice() -> None:
    meter = MachineMeter(0, 2, 1024, {PLATFORM: [Reading(PID, 500, 1 << 20)]})
    assert meter.sample(1000, {PLATFORM: [Reading(PID, 700, 1 << 20)]}).platform_cpu_us == 200
    assert meter.sample(2000, {}).platform_cpu_us == 200
    assert meter.sample(3000, {PLATFORM: [Reading(PID, 900, 1 << 20)]}).platform_cpu_us == 400
