"""`python -m tests.chaos`: requests while processes are killed, then the audit. Exits 1 where anything was lost."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.table import machine, table
from tests.chaos.killer import KINDS
from tests.chaos.scenario import Outcome, Plan, run, show


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1, help="of who is killed when, and what is asked")
    parser.add_argument("--minutes", type=float, help="end the load after this time")
    parser.add_argument("--kill", default="all", help=f"all, or some of {', '.join(KINDS)} with commas between")
    parser.add_argument("--pace", type=float, default=1.0, help="how much oftener than usual is killed")
    parser.add_argument("--processes", type=int, default=1, help="of clients")
    parser.add_argument("--connections", type=int, default=24, help="of each process of clients")
    parser.add_argument("--folder", type=Path, help="keep home and logs here")
    options = parser.parse_args()
    kinds = KINDS if options.kill == "all" else tuple(options.kill.split(","))
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"--kill knows {', '.join(KINDS)} and all, not {', '.join(unknown)}")
    plan = Plan(
        options.requests,
        options.seed,
        kinds,
        options.minutes,
        options.pace,
        options.processes,
        options.connections,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="serve-chaos.") as folder:
        outcome = run(options.folder or Path(folder), plan, show)
    sys.stdout.write(report(outcome) + "\n")
    return 1 if outcome.problems else 0


def report(outcome: Outcome) -> str:
    """Return what happened as a Markdown table, and every problem."""
    counts, killed = outcome.audit.counts, outcome.killed
    states = ", ".join(f"{state} {count:,}" for state, count in killed.states.most_common())
    pairs = sum(outcome.audit.extras_at_kill), sum(outcome.audit.in_flight_at_kill)
    rows = [
        ("requests", f"{outcome.requests:,}"),
        ("answered, in the ledger exactly once with the same id, status and cost", f"{counts['matched']:,}"),
        ("refused as they asked (`Prefer: wait`), not in the ledger", f"{counts['refusals']:,}"),
        ("left early by the client; of them in the ledger (as 499)",
         f"{counts['left']:,}; {counts['recorded_left']:,} ({counts['recorded_499']:,})"),
        ("kill -9 of replicas", f"{killed.counts['replicas']:,} ({states})"),
        *((f"kill -9 of the {kind}", f"{killed.counts[kind]:,}") for kind in KINDS[1:]),
        ("sent again by the platform, because the replica died", f"{killed.replays:,}"),
        ("sent again by clients, because the platform died", f"{counts['broken']:,}"),
        ("platform back after a kill, median and longest", _back(killed.back_s)),
        ("extra records / requests in flight, at all kills of the platform", f"{pairs[0]:,} / {pairs[1]:,}"),
        ("most requests in flight at a kill of the platform", f"{max(outcome.audit.in_flight_at_kill, default=0):,}"),
        ("replica lives that add up; of them estimated after a kill",
         f"{outcome.audit.verified['lives']:,}; {len(outcome.audit.verified['notes']):,}"),
        ("failed", f"{counts['failed']:,}"),
        ("problems", f"{len(outcome.problems):,}"),
        ("duration; rate", f"{outcome.duration_s:,.0f} s; {outcome.requests / outcome.duration_s:,.0f} requests/s"),
    ]  # fmt: skip
    title = f"Seed {outcome.plan.seed}, killed: {', '.join(outcome.plan.kills)}. {machine()}"
    problems = "\n".join(f"PROBLEM: {problem}" for problem in outcome.problems)
    verdict = "Nothing was lost." if not outcome.problems else problems
    return f"{title}\n\n{table(('what', 'count'), rows)}\n\n{verdict}"


def _back(times_s: list[float]) -> str:
    ordered = sorted(times_s)
    return f"{ordered[len(ordered) // 2]:.2f} s, {ordered[-1]:.2f} s" if ordered else "-"


if __name__ == "__main__":
    sys.exit(main())
