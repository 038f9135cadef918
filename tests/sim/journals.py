"""Journals written by hand, and what a ledger makes of them: what forecasts go by."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from billing import records
from billing.attribute import Parts
from billing.ledger import Ledger
from billing.machine import MachineMeter
from billing.prices import PriceBook, Prices
from serve.core.clock import NS_PER_S, NS_PER_US
from serve.core.ids import RevisionKey
from serve.core.spec import DeploymentSpec
from simulator.forecast.compare import Question
from simulator.forecast.replay import Site

KEY = RevisionKey("digits", 1)
PRICES = Prices(0, "USD", 24_000, 2_500, 7)
COLD_US, RUN_US, LEAVE_US = 500_000, 50_000, 20_000
WALL_NS = 1_700_000_000 * NS_PER_S


@dataclass
class Written:
    """One platform's tenure, from 0 until `end_s`; times are seconds since it began."""

    end_s: float
    writer: str = "abcdefgh"
    mono_ns: int = 5_000 * NS_PER_S
    """At its begin."""
    wall_ns: int = WALL_NS
    lines: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.origin = records.Origin(self.writer, "a-boot")
        self.lines.append(records.writer(self.origin, [], **self._at(0)))
        self._machine(0)

    def life(self, begin_s: float, calls_s: list[float], idle_s: float, *, reason: str | None = None) -> None:
        """A replica that runs one after the other of these calls, and leaves idle.

        None may come while another is inside. The first waits for the start if it comes with it. `reason`: why they
        are not charged.
        """
        begin_ns = self._at(begin_s)["mono_ns"]
        replica = f"{KEY}-{self.writer}{round(begin_s * 1000)}"
        life = records.Life(replica, *KEY, cores=1, memory_mib=64, assigned_mono_ns=begin_ns, assigned_wall_ns=begin_ns)
        lines = records.RequestLines(life, self.origin)
        for number, came_s in enumerate(calls_s):
            queue_us = 0 if number or came_s > begin_s else COLD_US
            end_s = came_s + (queue_us + RUN_US) / 1e6
            line = lines.line(
                id=f"{replica}-{number}", **self._at(end_s), status=200, charged=reason is None, reason=reason,
                rows=1, batch_rows=1, queue_us=queue_us, inside_us=RUN_US, cold_us=0 if number else COLD_US,
                busy_us=RUN_US, infer_us=RUN_US - 100, bytes_in=7, bytes_out=9, cold=queue_us > 0,
                price=PRICES.version,
            )  # fmt: skip
            self.lines.append(line)
        busy_us = RUN_US * len(calls_s)
        told_s = end_s + idle_s
        idle_us = round((told_s - begin_s) * 1e6) - COLD_US - busy_us
        parts = Parts(COLD_US, busy_us, 0, idle_us, LEAVE_US)
        at = self._at(told_s + LEAVE_US / 1e6)
        self.lines.append(records.segment(life, self.origin, parts, part="drain", exit_reason="drained", **at))

    def _machine(self, at_s: float) -> None:
        state = MachineMeter(self.mono_ns, 2, 4096, {}).sample(self._at(at_s)["mono_ns"], {})
        self.lines.append(records.machine(state, self.origin, **self._at(at_s)))

    def _at(self, at_s: float) -> dict[str, Any]:
        since_ns = round(at_s * 1e6) * NS_PER_US
        return {"mono_ns": self.mono_ns + since_ns, "wall_ns": self.wall_ns + since_ns}

    def put(self, folder: Path) -> None:
        self._machine(self.end_s)
        path = folder / "journal" / self.writer / "00000001.jsonl"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"".join(self.lines))


def question(folder: Path, *tenures: Written, now: str = "10s", **changes: object) -> Question:
    """Return what `--what-if` would ask of a ledger of these tenures. `now`: the idle timeout as it was."""
    for tenure in tenures:
        tenure.put(folder)
    with closing(Ledger(folder / "ledger.db")) as ledger:
        ledger.ingest(folder / "journal")
    spec = DeploymentSpec.model_validate({"name": KEY.name, "idle": now, "concurrency": 1})
    return Question(
        ledger=folder / "ledger.db",
        key=KEY,
        now=spec,
        changed=DeploymentSpec.model_validate(spec.model_dump() | changes),
        threads=1,
        is_batchable=False,
        since_ns=None,
        until_ns=None,
        site=Site(memory_budget_bytes=1 << 30, cores=2, prices=PriceBook([PRICES])),
    )
