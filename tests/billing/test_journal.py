from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from billing import records
from billing.journal import Journal, JournalError, Problem, journal_files, read_journal_file
from serve.core.clock import SystemClock


def line(number: int, padding: str = "") -> bytes:
    return records.encode({"kind": "test", "v": 1, "number": number, "padding": padding})


def numbers(folder: Path) -> list[int]:
    """Return the numbers of all test records in a journal, in order."""
    found = []
    for _, _, path in journal_files(folder):
        for record, _ in read_journal_file(path):
            assert not isinstance(record, Problem)
            if record["kind"] == "test":
                found.append(record["number"])
    return found


def write_calls() -> int:
    fields = dict(row.split(": ") for row in Path("/proc/self/io").read_text().splitlines())
    return int(fields["syscw"])


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path, "aaaaaaaa", SystemClock(), file_bytes=2000)
    yield opened
    opened.close()


def test_records_are_on_the_disk_after_flush_and_not_before(journal: Journal, tmp_path: Path) -> None:
    journal.append(line(1))
    assert numbers(tmp_path) == []
    journal.flush()
    assert numbers(tmp_path) == [1]
    assert journal.pending_bytes == 0


def test_a_flush_is_one_write_whatever_it_holds(journal: Journal) -> None:
    for number in range(100):
        journal.append(line(number))
    before = write_calls()
    journal.flush()
    assert write_calls() - before == 1
    journal.flush()
    assert write_calls() - before == 1


def test_files_follow_each_other_by_size_and_no_record_is_split_or_lost(journal: Journal, tmp_path: Path) -> None:
    for number in range(100):
        journal.append(line(number))
        journal.flush()
    names = [name for _, name, _ in journal_files(tmp_path)]
    assert names == [f"{number:08d}.jsonl" for number in range(1, len(names) + 1)]
    assert len(names) > 3
    assert numbers(tmp_path) == list(range(100))


def test_the_first_record_names_the_writers_that_are_gone(tmp_path: Path) -> None:
    for writer in ("aaaaaaaa", "bbbbbbbb"):
        Journal(tmp_path, writer, SystemClock()).close()
    Journal(tmp_path, "cccccccc", SystemClock(), sole_writer=False).close()
    firsts: list[Any] = [next(read_journal_file(path))[0] for _, _, path in journal_files(tmp_path)]
    assert [first["gone"] for first in firsts] == [[], ["aaaaaaaa"], []]


def test_a_writer_cannot_take_another_ones_folder(journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="File exists"):
        Journal(tmp_path, "aaaaaaaa", SystemClock())


def test_reading_stops_at_a_torn_tail_and_goes_on_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    whole, torn = line(1), line(2)
    path.write_bytes(whole + torn[:20])
    ((_, offset),) = read_journal_file(path)
    assert offset == len(whole)
    path.write_bytes(whole + torn)
    ((record, _),) = read_journal_file(path, offset)
    assert isinstance(record, dict)
    assert record["number"] == 2


def test_a_corrupt_line_is_reported_where_it_is_and_the_next_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    good, bad = line(1), line(2).replace(b"2", b"3", 1)
    path.write_bytes(good + bad + b"\n" + good)
    first, second, empty, last = (record for record, _ in read_journal_file(path))
    assert first == last
    assert second == Problem(len(good), "the checksum does not match: the line was altered")
    assert empty == Problem(len(good + bad), "the line does not end in a checksum")


def test_lines_longer_than_a_read_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"".join(line(number, "x" * 700_000) for number in range(5)))
    found = [record for record, _ in read_journal_file(path)]
    assert [record["number"] for record in found if isinstance(record, dict)] == [0, 1, 2, 3, 4]


def test_a_refusing_disk_keeps_records_whole_and_a_later_flush_writes_them(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "aaaaaaaa", SystemClock(), file_bytes=800)
    path = tmp_path / "aaaaaaaa" / "00000001.jsonl"
    expected = [line(number, "x" * 100) for number in range(10)]
    for record in expected:
        journal.append(record)
    size, hard = path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + len(expected[0]) + 10, hard))
    try:
        with pytest.raises(JournalError, match="free space on the disk"):
            journal.flush()
        journal.append(line(10))
        with pytest.raises(JournalError):
            journal.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
    assert numbers(tmp_path) == [0]
    assert path.read_bytes().endswith(b"\n"), "what was begun of the second line is taken back"
    assert journal.pending_bytes > 0
    journal.flush()
    assert numbers(tmp_path) == list(range(11))
    assert journal.pending_bytes == 0
    journal.append(line(11))
    journal.close()
    assert [name for _, name, _ in journal_files(tmp_path)] == ["00000001.jsonl", "00000002.jsonl"]
    assert numbers(tmp_path) == list(range(12))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small disk; a file size limit tests the same above")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_loses_nothing_once_there_is_space_again(small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 32_768)
    journal = Journal(small_disk / "journal", "aaaaaaaa", SystemClock())
    for number in range(700):
        journal.append(line(number, "x" * 100))
    with pytest.raises(JournalError, match="No space left"):
        journal.flush()
    with pytest.raises(JournalError, match="No space left"):
        journal.flush()
    filler.unlink()
    journal.close()
    found = numbers(small_disk / "journal")
    assert found == list(range(700))


def test_a_closed_journal_is_complete(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "aaaaaaaa", SystemClock())
    journal.append(line(1))
    journal.close()
    journal.close()
    assert numbers(tmp_path) == [1]
