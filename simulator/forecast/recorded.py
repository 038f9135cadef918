"""What the ledger knows of one revision's traffic, so that it can be lived again: who came when, and what it took.

Instants are nanoseconds since the platform of their tenure began, by the monotonic clock of its boot: setting the wall
clock changes nothing, and what happened under different platforms or boots is never set against each other. A request
came `queue_us` and `inside_us` before its end, to 2 µs; one that was recorded before there was `inside_us` is taken to
have been inside only for as long as it ran.
"""

from __future__ import annotations

import bisect
import sqlite3
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from billing.lives import RecordedLife, read_lives
from billing.tenures import Tenure, read_tenures, read_timelines
from serve.core.clock import NS_PER_US
from serve.core.ids import RevisionKey

MOST_REQUESTS = 100_000
"""Simulating one twice takes about 0.3 ms of a processor."""
_REQUESTS = """
    SELECT * FROM main.requests WHERE deployment = ? AND revision = ? AND cores = ? AND wall_ns >= ? AND wall_ns < ?
    ORDER BY writer, mono_ns LIMIT ?"""
_USUAL_COLD_NS = 1_000_000_000


class NotRecorded(Exception):
    """There is nothing, or too much, to go by. The sentence names the remedy."""


class Arrival(NamedTuple):
    """One request as it came."""

    at_ns: int
    run_us: int
    """Its service time: the engine run that answered it, or its share of busy time where that is longer (it was alone
    then, and its tensors were read and written in it)."""
    wait_us: int
    """All else until its end: for a replica, for a cold start, and inside for those before it."""
    rows: int
    is_cold: bool
    is_error: bool
    is_probe: bool
    """An inference of the platform's own, while publishing."""


class Start(NamedTuple):
    """A replica that became ready."""

    at_ns: int
    cold_ns: int


class Hold(NamedTuple):
    """Publishing brought a replica up and held it."""

    begin_ns: int
    end_ns: int


@dataclass(slots=True)
class Stretch:
    """What one platform saw of the revision, from `begin_ns` until the platform's end or now."""

    writer: str
    begin_ns: int
    end_ns: int
    wall_ns: int
    """At the begin of the tenure."""
    arrivals: list[Arrival] = field(default_factory=list)
    """In order."""
    starts: list[Start] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Recording:
    key: RevisionKey
    stretches: list[Stretch]
    lives: list[RecordedLife]
    cold_ns: list[int]
    """Of every start of the revision, in the window or before: where a stretch has none of its own."""
    leave_ns: int
    """From being told to end until the exit, the median."""
    memory_mib: int
    """Granted to a replica, the mean over its life."""
    guessed: int
    """Requests that were lost with their replica or cut off: their service time is the median of the others."""

    @property
    def requests(self) -> list[Arrival]:
        """Return the callers' own, in order."""
        return [arrival for stretch in self.stretches for arrival in stretch.arrivals if not arrival.is_probe]

    def cold_at_ns(self, stretch: Stretch, at_ns: int) -> int:
        """Return how long a start takes that begins now: as long as the recorded one that is nearest in time."""
        starts = stretch.starts
        if not starts:
            return round(statistics.median(self.cold_ns)) if self.cold_ns else _USUAL_COLD_NS
        place = bisect.bisect_left(starts, (at_ns, 0))
        near = starts[max(0, place - 1) : place + 1]
        return min(near, key=lambda start: abs(start.at_ns - at_ns)).cold_ns


def read_recording(
    connection: sqlite3.Connection, key: RevisionKey, cores: int, since_ns: int, until_ns: int
) -> Recording:
    """Return what is recorded of a revision in [since_ns, until_ns) of wall time. Raise NotRecorded.

    `cores` are those granted to its replicas: lives with others were trials of publishing, and are left out.
    """
    lives = [
        life
        for life in read_lives(connection)
        if (life.deployment, life.revision, life.cores) == (key.name, key.number, cores)
    ]
    rows = connection.execute(_REQUESTS, (*key, cores, since_ns, until_ns, MOST_REQUESTS + 1)).fetchall()
    _check(key, rows)
    tenures = [tenure for tenure in _tenures(connection) if tenure.timeline.wall_ns(tenure.until_mono_ns) > since_ns]
    timelines = {tenure.writer: tenure.timeline for tenure in tenures}
    begins_ns = [timelines[life.writer].wall_ns(life.assigned_mono_ns) for life in lives if life.writer in timelines]
    first_ns = min(begins_ns, default=0)
    stretches = [_stretch(tenure, max(since_ns, first_ns), until_ns) for tenure in tenures]
    by_writer = {stretch.writer: (stretch, tenure) for stretch, tenure in zip(stretches, tenures, strict=True)}
    guessed_us, guessed = _usual_us(rows)
    of_replicas: defaultdict[str, list[Arrival]] = defaultdict(list)
    for row in rows:
        if row["writer"] in by_writer:
            stretch, tenure = by_writer[row["writer"]]
            arrival = _arrival(row, tenure, guessed_us)
            stretch.arrivals.append(arrival)
            of_replicas[row["replica"]].append(arrival)
    for life in lives:
        if life.writer in by_writer:
            _add_life(*by_writer[life.writer], life, of_replicas[life.replica])
    for stretch in stretches:
        stretch.arrivals.sort()
        stretch.starts.sort()
    return Recording(
        key=key,
        stretches=[stretch for stretch in stretches if stretch.begin_ns < stretch.end_ns],
        lives=lives,
        cold_ns=[life.last.parts.cold_us * NS_PER_US for life in lives if _was_ready(life)],
        leave_ns=_median([life.last.parts.drain_us * NS_PER_US for life in lives if life.last.parts.drain_us]),
        memory_mib=_mean_memory_mib(lives),
        guessed=guessed,
    )


def _check(key: RevisionKey, rows: list[Any]) -> None:
    if len(rows) > MOST_REQUESTS:
        raise NotRecorded(
            f"more than {MOST_REQUESTS:,} requests of {key} are recorded in that time: ask about less with --since"
        )
    if all(row["reason"] == "probe" for row in rows):
        raise NotRecorded(
            f"no request of {key} is recorded in that time: call it first, or ask about more with --since"
        )


def _tenures(connection: sqlite3.Connection) -> list[Tenure]:
    """Return every tenure whose boot and end are known."""
    last_ns = "SELECT writer, max(mono_ns) FROM (SELECT writer, mono_ns FROM main.requests UNION ALL "
    last_ns += "SELECT lives.writer, states.mono_ns FROM main.states JOIN main.lives USING (replica)) GROUP BY writer"
    until_ns = {writer: mono_ns for writer, mono_ns in connection.execute(last_ns)}  # noqa: C416 - rows are no pairs
    return read_tenures(connection, until_ns, read_timelines(connection))


def _stretch(tenure: Tenure, since_wall_ns: int, until_wall_ns: int) -> Stretch:
    started_ns, wall_ns = tenure.started_mono_ns, tenure.timeline.wall_ns(tenure.started_mono_ns)
    length_ns = tenure.until_mono_ns - started_ns
    return Stretch(
        writer=tenure.writer,
        begin_ns=min(length_ns, max(0, since_wall_ns - wall_ns)),
        end_ns=max(0, min(length_ns, until_wall_ns - wall_ns)),
        wall_ns=wall_ns,
    )


def service_us(row: Any) -> int:
    """Return how long a request ran; 0 where it never did."""
    return int(max(row["infer_us"], row["busy_us"]))


def _usual_us(rows: list[Any]) -> tuple[int, int]:
    """Return the median service time, and of how many requests there is none."""
    known = [service_us(row) for row in rows if service_us(row)]
    return round(statistics.median(known)) if known else 0, len(rows) - len(known)


def _arrival(row: Any, tenure: Tenure, guessed_us: int) -> Arrival:
    run_us = service_us(row)
    inside_us = run_us if row["inside_us"] is None else row["inside_us"]
    total_us = row["queue_us"] + inside_us
    return Arrival(
        at_ns=row["mono_ns"] - tenure.started_mono_ns - total_us * NS_PER_US,
        run_us=run_us or guessed_us,
        wait_us=max(0, total_us - run_us),
        rows=row["rows"],
        is_cold=bool(row["cold"]),
        is_error=not row["charged"] and row["reason"] != "probe",
        is_probe=row["reason"] == "probe",
    )


def _add_life(stretch: Stretch, tenure: Tenure, life: RecordedLife, arrivals: list[Arrival]) -> None:
    at_ns = life.assigned_mono_ns - tenure.started_mono_ns
    if _was_ready(life):
        stretch.starts.append(Start(at_ns, life.last.parts.cold_us * NS_PER_US))
    probes = [arrival for arrival in arrivals if arrival.is_probe]
    if probes and stretch.begin_ns <= at_ns < stretch.end_ns:
        ends_ns = [probe.at_ns + (probe.wait_us + probe.run_us) * NS_PER_US for probe in probes]
        stretch.holds.append(Hold(at_ns, max(ends_ns)))


def _was_ready(life: RecordedLife) -> bool:
    return life.last.parts.busy_us + life.last.parts.idle_us > 0


def _mean_memory_mib(lives: list[RecordedLife]) -> int:
    weights = [life.last.parts.life_us for life in lives]
    if not sum(weights):
        return max((life.memory_mib for life in lives), default=0)
    return round(statistics.fmean([life.memory_mib for life in lives], weights))


def _median(values: list[int]) -> int:
    return round(statistics.median(values)) if values else 0
