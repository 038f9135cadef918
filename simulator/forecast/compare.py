"""`serve explain --what-if`: what was recorded, what is simulated with the same settings, and with others, compared."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from billing.ledger import reading
from serve.core.clock import NS_PER_S
from serve.core.ids import RevisionKey
from serve.core.revision import Revision, Signature
from serve.core.spec import DeploymentSpec
from simulator.forecast.figures import Costs, Figures, Outcome, costs_of
from simulator.forecast.recorded import Recording, read_recording
from simulator.forecast.replay import Site, replay

_NOTICED_US = 1000
"""A caller who waits so much longer, or less long, counts as one."""
_WEAK_SHARE = 0.1
"""As it was, simulated and recorded figures may differ by so much before the forecast is called weak."""
_WEAK_COUNT = 1
_EARLIEST_NS, _LATEST_NS = -(1 << 62), 1 << 62
_FOOTNOTES = (
    "Both simulations use the recorded arrivals, service times and starts. Nothing goes wrong in them, and no other "
    "deployment is on the machine; nor is what sockets and a busy machine add to waiting.",
    "Requests that were refused when they came are not in the journal, so they are in none of the columns.",
)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and all that is needed to answer."""

    ledger: Path
    key: RevisionKey
    now: DeploymentSpec
    changed: DeploymentSpec
    threads: int
    is_batchable: bool
    since_ns: int | None
    until_ns: int | None
    site: Site


def forecast(question: Question) -> dict[str, Any]:
    """Return the answer as JSON. Raise NotRecorded, LedgerError."""
    begin_ns = _EARLIEST_NS if question.since_ns is None else max(_EARLIEST_NS, min(question.since_ns, _LATEST_NS))
    end_ns = _LATEST_NS if question.until_ns is None else max(_EARLIEST_NS, min(question.until_ns, _LATEST_NS))
    with reading(question.ledger) as connection:
        recording = read_recording(connection, question.key, question.threads, begin_ns, end_ns)
        costs = costs_of(connection, question.key, recording.lives, question.site.prices, begin_ns, end_ns)
    recorded = recorded_figures(recording, costs)
    as_it_was, what_if = (_replayed(question, recording, spec) for spec in (question.now, question.changed))
    return {
        "name": question.key.name,
        "revision": question.key.number,
        "changes": _changes(question),
        "since_ns": question.since_ns,
        "until_ns": question.until_ns,
        "span_s": sum(stretch.end_ns - stretch.begin_ns for stretch in recording.stretches) / NS_PER_S,
        "currency": question.site.prices.currency,
        "recorded": recorded.as_json() | {"refused": None},
        "as_it_was": as_it_was.as_json(),
        "what_if": what_if.as_json(),
        "conclusion": conclusion(as_it_was, what_if),
        "weak": weakness(recorded, as_it_was),
        "notes": [*_FOOTNOTES, *_doubts(recording)],
    }


def recorded_figures(recording: Recording, costs: Costs) -> Figures:
    return Figures([Outcome(arrival.wait_us, arrival.is_cold) for arrival in recording.requests], costs)


def conclusion(as_it_was: Figures, what_if: Figures) -> str:
    """Return one sentence on what the other settings would have changed; both are simulated."""
    before, after = as_it_was.costs.total_nano, what_if.costs.total_nano
    changed = [_cost_change(before, after)]
    pairs = zip(as_it_was.outcomes, what_if.outcomes, strict=True)
    deltas_us = [
        after.wait_us - before.wait_us
        for before, after in pairs
        if before.wait_us is not None and after.wait_us is not None
    ]
    callers = len(as_it_was.outcomes)
    longer = [delta for delta in deltas_us if delta >= _NOTICED_US]
    shorter = [-delta for delta in deltas_us if delta <= -_NOTICED_US]
    if longer:
        changed.append(f"{len(longer)} of {callers} callers would have waited {_typical(longer)} longer")
    if shorter:
        changed.append(f"{len(shorter)} of {callers} would have waited {_typical(shorter)} less")
    if not longer and not shorter:
        changed.append("nobody would have waited longer or less")
    if what_if.refused != as_it_was.refused:
        changed.append(f"{what_if.refused} would have been refused instead of {as_it_was.refused}")
    return "It would have cost " + "; ".join(changed) + "."


def weakness(recorded: Figures, as_it_was: Figures) -> str | None:
    """Return why the simulation of the settings as they are cannot be trusted much; None where it can."""
    doubts = []
    for word, was, simulated in (
        ("cold starts", recorded.cold_starts, as_it_was.cold_starts),
        ("starts of replicas", recorded.costs.starts, as_it_was.costs.starts),
    ):
        if abs(simulated - was) > max(_WEAK_COUNT, _WEAK_SHARE * was):
            doubts.append(f"{simulated} {word} instead of {was}")
    was, simulated = recorded.costs.total_nano, as_it_was.costs.total_nano
    if abs(simulated - was) > _WEAK_SHARE * was:
        doubts.append(f"costs that are {_cost_change(was, simulated)}")
    if as_it_was.refused:
        doubts.append(f"{as_it_was.refused} refusals")
    if not doubts:
        return None
    return (
        "The forecast is weak: simulated with the settings as they are, what was recorded comes out with "
        + ", ".join(doubts)
        + ". Other settings at that time, other deployments in its memory, or faults are likely reasons."
    )


def _replayed(question: Question, recording: Recording, spec: DeploymentSpec) -> Figures:
    revision = Revision(
        key=question.key,
        spec=spec,
        digest="0" * 64,
        model_dir="",
        model_file="",
        threads=question.threads,
        memory_bytes=recording.memory_mib << 20,
        signature=Signature("paper", (), (), question.is_batchable),
    )
    with tempfile.TemporaryDirectory(prefix="servezero-what-if-") as folder:
        return replay(recording, revision, question.site, Path(folder))


def _changes(question: Question) -> dict[str, list[Any]]:
    """Return the settings that differ, as [now, what if]."""
    now, changed = (spec.model_dump(mode="json") for spec in (question.now, question.changed))
    return {key: [now[key], value] for key, value in changed.items() if now[key] != value}


def _doubts(recording: Recording) -> list[str]:
    if not recording.guessed:
        return []
    return [
        f"{recording.guessed} requests were cut off or lost with their replica: their service time is taken to be the "
        "median of the others."
    ]


def _cost_change(before: int, after: int) -> str:
    if before == after:
        return "the same"
    if not before:
        return "more than the nothing it did"
    share = abs(after - before) / before
    return f"{share * 100:.{0 if share >= 0.1 else 1}f} % {'more' if after > before else 'less'}"


def _typical(waits_us: list[int]) -> str:
    return f"{statistics.median(waits_us) / 1000:,.0f} ms"
