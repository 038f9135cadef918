from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from billing.attribute import Share
from billing.journal import Journal
from billing.ledger import Ledger, open_read_only
from billing.verify import verify
from serve.core.clock import VirtualClock
from tests.billing.replay import Recorded

ROOT = Path(__file__).parents[2]


class LedgerProcess:
    def __init__(self, journal: Path, ledger: Path) -> None:
        command = [sys.executable, "-P", "-m", "billing", "--journal", str(journal), "--ledger", str(ledger)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, line: str) -> Any:
        self.say(line)
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def sync(self) -> Any:
        return self.ask('{"op":"sync"}')

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(20)


@contextmanager
def running(journal: Path, ledger: Path) -> Iterator[LedgerProcess]:
    process = LedgerProcess(journal, ledger)
    with process.process:
        try:
            yield process
        finally:
            process.process.kill()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(Journal(tmp_path / "journal", "aaaaaaaa", VirtualClock(10**12), file_bytes=5 << 20)) as opened:
        yield opened


def count(ledger: Path) -> int:
    with closing(open_read_only(ledger)) as connection:
        found: int = connection.execute("SELECT count(*) FROM requests").fetchone()[0]
        return found


def busy_life(journal: Journal, requests: int) -> None:
    clock = VirtualClock(10**12)
    replica = Recorded(journal, clock)
    replica.start(0.05)
    for _ in range(requests):
        replica.serve(0.000_25)
    replica.drain()
    replica.exit()
    journal.flush()


def test_a_poke_takes_in_what_is_new_and_the_end_takes_in_the_rest(journal: Journal, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    with running(tmp_path / "journal", ledger) as process:
        assert process.sync() == {"synced": 1}
        busy_life(journal, 10)
        assert process.sync() == {"synced": 14}
        assert process.sync() == {"synced": 0}
        assert count(ledger) == 10
        busy_life(journal, 5)
        assert process.end() == 0
    assert count(ledger) == 15


def test_what_it_does_not_understand_is_answered_and_it_goes_on(journal: Journal, tmp_path: Path) -> None:
    with running(tmp_path / "journal", tmp_path / "ledger.db") as process:
        assert "not a JSON line" in process.ask("hello")["error"]
        assert "only" in process.ask('["sync"]')["error"]
        assert "only" in process.ask('{"op":"dance"}')["error"]
        assert process.sync() == {"synced": 1}
        assert process.end() == 0


def test_ctrl_c_in_the_terminal_does_not_end_it_before_the_platform_does(journal: Journal, tmp_path: Path) -> None:
    with running(tmp_path / "journal", tmp_path / "ledger.db") as process:
        process.sync()
        process.process.send_signal(signal.SIGINT)
        assert process.sync() == {"synced": 0}
        assert process.end() == 0


def test_it_is_one_small_thread_without_the_platforms_libraries(journal: Journal, tmp_path: Path) -> None:
    busy_life(journal, 2000)
    with running(tmp_path / "journal", tmp_path / "ledger.db") as process:
        process.sync()
        proc = Path(f"/proc/{process.process.pid}")
        assert len(list((proc / "task").iterdir())) == 1
        status = dict(row.split(":\t", 1) for row in (proc / "status").read_text().splitlines() if ":\t" in row)
        assert int(status["RssAnon"].split()[0]) < 20_000, "kB of its own"
        assert "pydantic" not in (proc / "maps").read_text()
        assert process.end() == 0


def test_an_unusable_ledger_ends_it_with_a_sentence(journal: Journal, tmp_path: Path) -> None:
    with running(tmp_path / "journal", tmp_path / "missing" / "ledger.db") as process:
        assert process.process.wait(20) == 1


def test_killed_in_the_middle_of_taking_in_it_resumes_and_nothing_is_lost_or_doubled(
    journal: Journal, tmp_path: Path
) -> None:
    busy_life(journal, 40_000)
    ledger = tmp_path / "ledger.db"
    Ledger(ledger).close()
    kills_amid = 0
    for _ in range(4):
        before = count(ledger)
        with running(tmp_path / "journal", ledger) as process:
            process.say('{"op":"sync"}')
            while count(ledger) == before and before < 40_000:
                assert process.process.poll() is None
            os.kill(process.process.pid, signal.SIGKILL)
            process.process.wait()
        kills_amid += 0 < count(ledger) < 40_000
    assert kills_amid > 0, "no kill came amid the taking in: make the journal longer"
    with running(tmp_path / "journal", ledger) as process:
        process.sync()
        assert process.end() == 0
    assert count(ledger) == 40_000
    assert verify(ledger, tmp_path / "journal").problems == []


def test_a_hundred_thousand_requests_sum_to_the_life_they_used(journal: Journal, tmp_path: Path) -> None:
    clock = VirtualClock(10**12)
    replica = Recorded(journal, clock)
    replica.start(0.05)
    inside = [replica.metered.enter() for _ in range(8)]
    for number in range(100_000):
        clock.advance(0.000_031_7)
        usage = replica.metered.leave(inside.pop(0))
        share = replica.account.answered(usage, clock.monotonic_ns())
        replica.record(share)
        if number % 100 == 0:
            journal.flush()
        inside.append(replica.metered.enter(rows=1 + number % 5))
    for request in inside:
        replica.metered.leave(request)
    replica.account.busy_reported(clock.monotonic_ns(), replica.metered.meter.total_busy_ns, clock.monotonic_ns())
    replica.record(Share(0, 0), status=502)
    replica.drain()
    replica.exit()
    journal.flush()
    with running(tmp_path / "journal", tmp_path / "ledger.db") as process:
        assert process.sync()["synced"] > 100_000
        assert process.end() == 0
    result = verify(tmp_path / "ledger.db", tmp_path / "journal")
    assert result.problems == []
    assert (result.lives, result.requests) == (1, 100_001)


def test_a_ledger_that_is_deleted_under_it_is_derived_anew(journal: Journal, tmp_path: Path) -> None:
    busy_life(journal, 2000)
    ledger = tmp_path / "ledger.db"
    with running(tmp_path / "journal", ledger) as process:
        known = process.sync()
        ledger.unlink()
        assert process.sync() == known
        ledger.rename(tmp_path / "elsewhere.db")
        assert process.sync() == known
        assert process.sync() == {"synced": 0}
        assert verify(ledger, tmp_path / "journal").ok
