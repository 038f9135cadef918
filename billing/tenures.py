"""Tenures as the ledger knows them: how long each platform had the machine, and what it took itself.

Durations are monotonic time of one boot, so that nothing changes when the wall clock is set. Where a border of a bill
is meant by the wall clock, `Timeline` tells what that showed: each instant had one wall time, so a bill's periods share
all of the time among them, whatever was done to the clock.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from typing import NamedTuple, TypeVar

from billing.spans import Span, cut, difference
from serve.core.clock import NS_PER_US

T = TypeVar("T")

_MACHINE = "SELECT machine.*, writers.boot FROM main.machine JOIN main.writers USING (writer) ORDER BY writer, mono_ns"
_MOMENTS = "SELECT * FROM main.moments ORDER BY writer, mono_ns"


class Timeline:
    """What a writer's wall clock showed."""

    def __init__(self, moments: list[tuple[int, int]]) -> None:
        """`moments`: (monotonic ns, wall ns) where it was set, in order; at least one. It went on from there."""
        self._moments = moments
        self._borders_ns = [mono_ns for mono_ns, _ in moments[1:]]

    def wall_ns(self, mono_ns: int) -> int:
        found = self._moments[0]
        for moment in self._moments:
            if moment[0] > mono_ns:
                break
            found = moment
        return mono_ns + found[1] - found[0]

    def place(self, mono_ns: int, borders_ns: Sequence[int], bucket_ns: int) -> tuple[int, int, int]:
        """Return between which borders of wall time an instant falls, where the clock was set among them.

        What happened between two instants of one place is never cut. `bucket_ns`: 0, or borders at all its multiples.
        """
        wall_ns = self.wall_ns(mono_ns)
        bucket = wall_ns // bucket_ns if bucket_ns else 0
        return bisect_right(self._borders_ns, mono_ns), bisect_right(borders_ns, wall_ns), bucket

    def on_the_wall(self, span: Span) -> Iterator[Span]:
        """Yield a span of monotonic time in pieces of wall time that the clock showed without being set."""
        for piece in cut(span, self._borders_ns):
            begin_ns = self.wall_ns(piece.begin_ns)
            yield Span(begin_ns, begin_ns + piece.end_ns - piece.begin_ns, piece.parts)


class Taken(NamedTuple):
    """Cumulative from the begin of a tenure."""

    elapsed_us: int
    platform_cpu_us: int
    platform_mib_us: int
    zygote_cpu_us: int
    zygote_mib_us: int


_NOTHING = Taken(0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Tenure:
    """The time in which one platform had the machine."""

    writer: str
    boot: str
    cores: int
    memory_mib: int
    ended: bool
    """It closed its books. If not, it goes on, or ended with its last known instant."""
    started_mono_ns: int
    known: list[tuple[int, Taken]]
    """Moments in monotonic ns, in order; at least one. The last is the tenure's last known instant."""
    timeline: Timeline

    @property
    def until_mono_ns(self) -> int:
        return self.known[-1][0]

    @property
    def taken(self) -> Taken:
        return self.known[-1][1]

    def spans(self, borders_ns: Sequence[int]) -> Iterator[Span]:
        """Yield what happened, on the wall clock, for a bill with these borders; parts are those of `Taken`."""
        began = (self.started_mono_ns, _NOTHING)
        known = thinned(self.known, began, lambda moment: self.timeline.place(moment[0], borders_ns, 0))
        for (begin_ns, before), (end_ns, after) in pairwise(chain([began], known)):
            yield from self.timeline.on_the_wall(Span(begin_ns, end_ns, difference(after, before)))


def thinned(known: Sequence[T], began: T, place: Callable[[T], object]) -> Iterator[T]:
    """Yield the moments that matter to a bill: no sum changes without those between neighbours of the same place.

    A year has half a million minutes, a bill few borders.
    """
    before = place(began)
    here = place(known[0])
    for moment, following in pairwise(known):
        after = place(following)
        if not before == here == after:
            yield moment
        before, here = here, after
    yield known[-1]


def read_timelines(connection: sqlite3.Connection) -> dict[str, Timeline]:
    """Return the timeline of each writer."""
    moments: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in connection.execute(_MOMENTS):
        moments[row["writer"]].append((row["mono_ns"], row["wall_ns"]))
    return {writer: Timeline(known) for writer, known in moments.items()}


def read_tenures(
    connection: sqlite3.Connection, until_mono_ns: Mapping[str, int], timelines: Mapping[str, Timeline]
) -> list[Tenure]:
    """Return every tenure, in the order of their begin by the wall clock.

    `until_mono_ns`: the last instant known of each writer by its other records. Between its last record and that, a
    platform is taken to hold what it held; processor time that nobody has read yet is on no line of its own.
    """
    found = [
        _tenure(rows, until_mono_ns.get(writer, 0), timelines[writer])
        for writer, rows in groupby(connection.execute(_MACHINE), key=lambda row: str(row["writer"]))
    ]
    return sorted(found, key=lambda tenure: tenure.timeline.wall_ns(tenure.started_mono_ns))


def _tenure(rows: Iterator[sqlite3.Row], until_mono_ns: int, timeline: Timeline) -> Tenure:
    first = last = next(rows)
    started_ns = first["started_mono_ns"]

    def elapsed_us(mono_ns: int) -> int:
        return int(mono_ns - started_ns) // NS_PER_US

    known = []
    for last in chain([first], rows):
        mono_ns = last["mono_ns"]
        known.append((mono_ns, Taken(elapsed_us(mono_ns), *(last[key] for key in Taken._fields[1:]))))
    if until_mono_ns > last["mono_ns"]:
        taken = known[-1][1]
        passed_us = elapsed_us(until_mono_ns) - taken.elapsed_us
        extended = taken._replace(
            elapsed_us=taken.elapsed_us + passed_us,
            platform_mib_us=taken.platform_mib_us + last["platform_mib"] * passed_us,
            zygote_mib_us=taken.zygote_mib_us + last["zygote_mib"] * passed_us,
        )
        known.append((until_mono_ns, extended))
    return Tenure(
        writer=first["writer"],
        boot=first["boot"],
        cores=first["cores"],
        memory_mib=first["memory_mib"],
        ended=bool(last["ended"]),
        started_mono_ns=started_ns,
        known=known,
        timeline=timeline,
    )
