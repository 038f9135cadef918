"""The platform's own time on the books: a record at the begin, one a minute, one when asked, and one at the end."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from activator.writer import AnswerWriter
from billing.journal import Journal, journal_files, read_journal_file
from serve.control.machine_recorder import INTERVAL_S, MachineRecorder
from serve.core import machine
from serve.core.clock import SystemClock, VirtualClock
from serve.core.metrics import Metrics


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(Journal(tmp_path, "aaaaaaaa", SystemClock())) as opened:
        yield opened


def recorded(folder: Path) -> list[dict[str, Any]]:
    entries = [record for _, _, path in journal_files(folder) for record, _ in read_journal_file(path)]
    return [record for record in entries if isinstance(record, dict) and record["kind"] == "machine"]


def recorder(journal: Journal, pids: tuple[int | None, int | None] = (None, None)) -> MachineRecorder:
    clock = SystemClock()
    return MachineRecorder(journal, AnswerWriter(journal, Metrics(), clock), clock, lambda: pids)


async def test_a_tenure_begins_with_the_machines_resources_and_ends_with_closed_books(
    journal: Journal, tmp_path: Path
) -> None:
    opened = recorder(journal)
    opened.write()
    opened.close()
    journal.flush()
    begin, middle, end = recorded(tmp_path)
    assert (begin["cores"], begin["memory_mib"]) == (machine.cores(), machine.memory_bytes() >> 20)
    assert begin["started_mono_ns"] == begin["mono_ns"] == end["started_mono_ns"]
    assert [record["ended"] for record in (begin, middle, end)] == [False, False, True]
    assert begin["platform_cpu_us"] == 0
    assert 0 < begin["platform_mib"] < 2000


@pytest.mark.looptime
async def test_at_rest_there_is_one_record_a_minute_and_none_after_the_end(journal: Journal, tmp_path: Path) -> None:
    opened = recorder(journal)
    await asyncio.sleep(10 * INTERVAL_S + 1)
    opened.close()
    await asyncio.sleep(10 * INTERVAL_S)
    journal.flush()
    assert len(recorded(tmp_path)) == 1 + 10 + 1


async def test_a_process_that_is_started_later_is_counted_from_its_begin(journal: Journal, tmp_path: Path) -> None:
    script = "n = bytearray(30 << 20)\nfor _ in range(2_000_000): pass\nprint(flush=True); input()"
    pids: list[int | None] = [None]
    clock = SystemClock()
    opened = MachineRecorder(journal, AnswerWriter(journal, Metrics(), clock), clock, lambda: (None, pids[0]))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    pids[0] = process.pid
    opened.write()
    process.kill()
    await process.wait()
    opened.close()
    journal.flush()
    *_, alive, gone = recorded(tmp_path)
    assert alive["zygote_cpu_us"] > 0
    assert alive["zygote_mib"] >= 30
    assert gone["zygote_cpu_us"] == alive["zygote_cpu_us"]
    assert gone["zygote_mib"] == 0
    assert gone["zygote_mib_us"] == alive["zygote_mib"] * (
        (gone["mono_ns"] - gone["started_mono_ns"]) // 1000 - (alive["mono_ns"] - alive["started_mono_ns"]) // 1000
    )


async def test_while_the_disk_refuses_nothing_is_added_to_what_waits(journal: Journal) -> None:
    opened = recorder(journal)
    opened._writer.is_blocked = True
    waiting = journal.pending_bytes
    opened.write()
    assert journal.pending_bytes == waiting
    opened.close()


async def test_a_wall_clock_that_is_set_changes_no_sum(tmp_path: Path) -> None:
    clock = VirtualClock(10**12)
    with closing(Journal(tmp_path, "aaaaaaaa", clock)) as journal:
        opened = MachineRecorder(journal, AnswerWriter(journal, Metrics(), clock), clock, lambda: (os.getpid(), None))
        clock.step_wall(-86_400)
        clock.advance(3)
        opened.close()
    begin, end = recorded(tmp_path)
    assert end["platform_mib_us"] == begin["platform_mib"] * 3_000_000
