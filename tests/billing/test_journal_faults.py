"""The journal under faults: disks that refuse, files that cannot be made, tails that are torn, bits that flip."""

from __future__ import annotations

import itertools
import os
import resource
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from billing import records
from billing.journal import Journal, JournalError, Problem, journal_files, read_journal_file
from serve.core.clock import SystemClock
from tests.billing.test_journal import line, numbers


def descriptor_of(path: Path) -> int:
    """Return this process's descriptor of an open file."""
    for entry in Path("/proc/self/fd").iterdir():
        if entry.exists() and entry.samefile(path):
            return int(entry.name)
    raise AssertionError(f"{path} is not open")


@contextmanager
def replaced(path: Path, *, by: int) -> Iterator[None]:
    """Let what an open file is written to go to another descriptor for a while."""
    descriptor = descriptor_of(path)
    kept = os.dup(descriptor)
    os.dup2(by, descriptor, inheritable=False)
    try:
        yield
    finally:
        os.dup2(kept, descriptor, inheritable=False)
        os.close(kept)


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Let this process open nothing more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def broken_line() -> int:
    """Return a descriptor whose writes fail with EIO: a terminal that was hung up."""
    ours, theirs = os.openpty()
    os.close(ours)
    return theirs


def test_an_input_output_error_keeps_the_records_and_they_are_written_when_it_is_over(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, "aaaaaaaa", SystemClock())) as journal:
        (_, _, path) = journal_files(tmp_path)[0]
        broken = broken_line()
        with replaced(path, by=broken):
            for number in range(3):
                journal.append(line(number))
                with pytest.raises(JournalError, match="Input/output error"):
                    journal.flush()
            assert journal.pending_bytes == sum(len(line(number)) for number in range(3))
        os.close(broken)
        journal.flush()
        assert journal.pending_bytes == 0
        assert numbers(tmp_path) == [0, 1, 2]


def test_a_device_without_space_keeps_the_records_too(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, "aaaaaaaa", SystemClock())) as journal, Path("/dev/full").open("wb") as full:
        with replaced(journal_files(tmp_path)[0][2], by=full.fileno()):
            journal.append(line(1))
            with pytest.raises(JournalError, match="No space left"):
                journal.flush()
        journal.append(line(2))
        journal.flush()
        assert numbers(tmp_path) == [1, 2]


def test_where_no_new_file_can_be_made_the_last_one_grows_on_and_nothing_is_held_back(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, "aaaaaaaa", SystemClock(), file_bytes=1000)) as journal:
        with no_descriptors_left():
            for number in range(50):
                journal.append(line(number))
                journal.flush()
        (only,) = journal_files(tmp_path)
        assert only[2].stat().st_size > 2000
        for number in range(50, 60):
            journal.append(line(number))
            journal.flush()
        assert len(journal_files(tmp_path)) > 1
        assert numbers(tmp_path) == list(range(60))


def test_a_journal_that_cannot_be_opened_leaves_no_descriptor(tmp_path: Path) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(JournalError, match="free space"):
            Journal(tmp_path, "aaaaaaaa", SystemClock())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_a_record_can_be_amended_until_it_is_written_whole(tmp_path: Path) -> None:
    lines = [records.encode({"kind": "request", "v": 1, "id": f"w-{number}", "charged": True}) for number in range(3)]
    with closing(Journal(tmp_path, "aaaaaaaa", SystemClock())) as journal:
        path = journal_files(tmp_path)[0][2]
        for encoded in lines:
            journal.append(encoded)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
        try:
            with pytest.raises(JournalError):
                journal.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert numbers(tmp_path) == []
        assert path.read_bytes().endswith(b"\n"), "the ten bytes of it that fitted were taken back"
        assert journal.amend("w-0", charged=False)
        assert not journal.amend("w-9", charged=False)
        journal.flush()
        assert not journal.amend("w-2", charged=False), "it is written"
        found = [record for record, _ in read_journal_file(path) if isinstance(record, dict)]
        assert [record.get("charged") for record in found[1:]] == [False, True, True]


def test_a_long_refusal_is_asked_with_one_line_and_not_with_all_that_waits(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, "aaaaaaaa", SystemClock())) as journal:
        (_, _, path) = journal_files(tmp_path)[0]
        size = path.stat().st_size
        with Path("/dev/full").open("wb") as full, replaced(path, by=full.fileno()):
            for number in range(2000):
                journal.append(line(number, "x" * 1000))
                with pytest.raises(JournalError):
                    journal.flush()
        journal.flush()
        assert path.stat().st_size - size > 2_000_000
        assert numbers(tmp_path) == list(range(2000))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_however_the_kernel_cuts_writes_every_record_is_there_once_and_whole(data: st.DataObject) -> None:
    """A file whose size limit moves on at random: short writes and refusals in any order."""
    with _folder() as folder, closing(Journal(folder, "aaaaaaaa", SystemClock(), file_bytes=700)) as journal:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        count = 0
        try:
            for room in data.draw(st.lists(st.integers(0, 400), max_size=12)):
                size = journal_files(folder)[-1][2].stat().st_size
                resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, limits[1]))
                for _ in range(data.draw(st.integers(0, 4))):
                    journal.append(line(count, "x" * (count % 50)))
                    count += 1
                try:
                    journal.flush()
                except JournalError:
                    assert journal.pending_bytes
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        journal.flush()
        assert numbers(folder) == list(range(count))


# Reading what faults left -----------------------------------------------------------------------------------------


def read(path: Path) -> list[object]:
    return [record for record, _ in read_journal_file(path)]


def test_cut_at_every_byte_of_its_last_records_a_file_reads_as_the_whole_lines_before(tmp_path: Path) -> None:
    path = tmp_path / "file"
    lines = [line(number, "äx" * number) for number in range(4)]
    whole = b"".join(lines)
    path.write_bytes(whole)
    expected = read(path)
    ends = [sum(map(len, lines[: count + 1])) for count in range(4)]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        complete = sum(end <= size for end in ends)
        assert read(path) == expected[:complete], size
        path.write_bytes(whole)
        offset = ends[complete - 1] if complete else 0
        assert [record for record, _ in read_journal_file(path, offset)] == expected[complete:], "goes on where it was"


_LINES = [line(number, "x" * (number % 7)) for number in range(12)]
_WHOLE = b"".join(_LINES)


@given(flips=st.sets(st.integers(0, len(_WHOLE) * 8 - 1), min_size=1, max_size=5))
@settings(max_examples=300, deadline=None)
def test_flipped_bits_are_reported_where_they_are_and_every_other_record_is_read(flips: set[int]) -> None:
    damaged = bytearray(_WHOLE)
    for flip in flips:
        damaged[flip // 8] ^= 1 << flip % 8
    with _folder() as folder:
        path = folder / "file"
        path.write_bytes(damaged)
        found = list(read_journal_file(path))
    starts = [sum(map(len, _LINES[:number])) for number in range(len(_LINES) + 1)]
    # A flip in a newline joins two lines, so both are hit.
    hit = {
        number
        for number, (begin, end) in enumerate(itertools.pairwise(starts))
        if any(begin <= flip // 8 < end or flip // 8 == begin - 1 for flip in flips)
    }
    records_found = [record["number"] for record, _ in found if isinstance(record, dict)]
    assert records_found == [number for number in range(len(_LINES)) if number not in hit]
    for problem in (record for record, _ in found if isinstance(record, Problem)):
        assert any(starts[number] <= problem.offset < starts[number + 1] for number in hit)
    if hit and min(hit) < len(_LINES) - 1:
        assert any(isinstance(record, Problem) for record, _ in found)


@contextmanager
def _folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)
