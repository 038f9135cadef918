"""Replica lives as the ledger knows them: closed, open, or ended with their writer."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from billing.attribute import Parts
from billing.spans import Span, difference
from billing.tenures import Timeline, thinned
from serve.core.clock import NS_PER_US

_NOTHING = Parts(0, 0, 0, 0, 0)

_STATES = """
    SELECT lives.*, states.mono_ns, cold_us, billed_us, lost_us, idle_us, drain_us, exit_reason, estimated, bounded,
           lives.writer IN (SELECT writer FROM main.gone) AS writer_gone
    FROM main.lives JOIN main.states USING (replica) ORDER BY replica, mono_ns"""
_ANSWERED_BY_OPEN = """
    SELECT replica, sum(busy_us), sum(cold_us), max(mono_ns) FROM main.requests
    WHERE replica IN (SELECT replica FROM main.states GROUP BY replica HAVING count(exit_reason) = 0)
    GROUP BY replica"""


class LifeState(StrEnum):
    OPEN = "open"
    CLOSED = "closed"
    ABANDONED = "abandoned"
    """Its writer ended without closing it: it counts up to its last known instant and is estimated."""


class Known(NamedTuple):
    """A moment of a life: cumulative parts at a monotonic time."""

    mono_ns: int
    parts: Parts


@dataclass(frozen=True, slots=True)
class RecordedLife:
    replica: str
    writer: str
    deployment: str
    revision: int
    labels: dict[str, str]
    cores: int
    memory_mib: int
    assigned_mono_ns: int
    assigned_wall_ns: int
    state: LifeState
    estimated: bool
    bounded: bool
    """Its replica reported figures that cannot be."""
    known: list[Known]
    """In order of time; at least one."""

    @property
    def last(self) -> Known:
        return self.known[-1]

    def spans(
        self, timeline: Timeline | None = None, borders_ns: Sequence[int] = (), bucket_ns: int = 0
    ) -> Iterator[Span]:
        """Yield what happened by the wall clock, for a bill with these borders; parts are those of `Parts`.

        Without a timeline of its writer, by the wall clock as it stood at assignment.
        """
        clock = timeline or Timeline([(self.assigned_mono_ns, self.assigned_wall_ns)])
        before = Known(self.assigned_mono_ns, _NOTHING)
        for known in thinned(self.known, before, lambda moment: clock.place(moment.mono_ns, borders_ns, bucket_ns)):
            yield from clock.on_the_wall(Span(before.mono_ns, known.mono_ns, difference(known.parts, before.parts)))
            before = known


def read_lives(connection: sqlite3.Connection) -> Iterator[RecordedLife]:
    """Yield every life in the ledger. A life without exit is known up to its last checkpoint or answered request."""
    answered = {replica: sums for replica, *sums in connection.execute(_ANSWERED_BY_OPEN)}
    for _, group in itertools.groupby(connection.execute(_STATES), key=lambda row: row["replica"]):
        yield _life(group, answered)


def extended(parts: Parts, busy_us: int, cold_us: int, until_us: int) -> Parts:
    """Return the last checkpoint of an open life brought up to its last answered request.

    `busy_us`, `cold_us`: sums over all its requests; `until_us`: from assignment to the last answer. What the
    checkpoint counted as lost, because it was still inside, becomes billed first.
    """
    cold_us, billed_us = max(parts.cold_us, cold_us), max(parts.billed_us, busy_us)
    lost_us = max(0, parts.lost_us - (billed_us - parts.billed_us))
    settled_us = cold_us + billed_us + lost_us + parts.drain_us
    life_us = max(parts.life_us, until_us, settled_us)
    return Parts(cold_us, billed_us, lost_us, life_us - settled_us, parts.drain_us)


def _life(rows: Iterator[sqlite3.Row], answered: dict[str, list[int]]) -> RecordedLife:
    first = last = next(rows)
    known = []
    for last in itertools.chain([first], rows):
        known.append(Known(last["mono_ns"], _parts(last)))
    state = _state(last)
    if state is not LifeState.CLOSED and first["replica"] in answered:
        busy_us, cold_us, mono_ns = answered[first["replica"]]
        until_us = (mono_ns - first["assigned_mono_ns"]) // NS_PER_US
        parts = extended(known[-1].parts, busy_us, cold_us, until_us)
        known.append(Known(first["assigned_mono_ns"] + parts.life_us * NS_PER_US, parts))
    return RecordedLife(
        replica=first["replica"],
        writer=first["writer"],
        deployment=first["deployment"],
        revision=first["revision"],
        labels=orjson.loads(first["labels"]),
        cores=first["cores"],
        memory_mib=first["memory_mib"],
        assigned_mono_ns=first["assigned_mono_ns"],
        assigned_wall_ns=first["assigned_wall_ns"],
        state=state,
        estimated=bool(last["estimated"]) or state is LifeState.ABANDONED,
        bounded=bool(last["bounded"]),
        known=known,
    )


def _state(last: Any) -> LifeState:
    if last["exit_reason"] is not None:
        return LifeState.CLOSED
    return LifeState.ABANDONED if last["writer_gone"] else LifeState.OPEN


def _parts(row: Any) -> Parts:
    return Parts(row["cold_us"], row["billed_us"], row["lost_us"], row["idle_us"], row["drain_us"])
