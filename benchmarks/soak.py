"""Is everything flat? `python -m benchmarks.soak [--minutes 30]`.

Deployments wake and sleep, replicas are killed, deployments are made, replaced and removed, callers leave. Meanwhile
the platform, its zygote and its ledger are watched from outside. Zygote and ledger are killed too, but only in the
first third: the rest of the time is for their memory. Exits 1 where something grew, or a request failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from autoscaler.old_logs import ENDS_BETWEEN, KEPT
from benchmarks.flatness import FLAT, Series, growth, is_flat
from benchmarks.table import machine, median, table
from tests.chaos.killer import Killer, stop
from tests.chaos.scenario import ENDLESS, Load, Plan, free_port, leftovers, show
from tests.chaos.workload import DEPLOYED
from tests.e2e.models import row
from tests.e2e.platforms import RunningPlatform

SAMPLE_S = 2.0
BOUNDS = {"files of logs": (KEPT + ENDS_BETWEEN) * (len(DEPLOYED) + 1)}
"""What fills up to a bound is held against that."""
CHURN_S = 4.0


class Churn:
    """What operators do all day: a deployment is replaced, one is made, called and removed."""

    def __init__(self, platform: RunningPlatform, folder: Path) -> None:
        self.rounds = 0
        self.problems: list[str] = []
        self._platform = platform
        self._folder = folder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        path = self._folder / "models" / "echo" / "serve.yaml"
        while not self._ended.wait(CHURN_S):
            self.rounds += 1
            name = f"guest-{self.rounds}"
            self._done(self._platform.cli("deploy", "--file", str(path), "--label", f"round={self.rounds}"))
            self._done(self._platform.cli("deploy", "--file", str(path), "--name", name))
            self._platform.infer(name, row(1))
            self._done(self._platform.cli("delete", name, "--yes"))

    def _done(self, result: object) -> None:
        if getattr(result, "exit_code", 0) and "killed" not in getattr(result, "err", ""):
            self.problems.append(f"round {self.rounds}: {getattr(result, 'err', '')[-300:]}")


def watch(platform: RunningPlatform, samples: Series, ended: threading.Event) -> None:
    """Sample until `ended`."""
    begin_s = time.monotonic()
    while not ended.wait(SAMPLE_S):
        at_s = time.monotonic() - begin_s
        pids = {role: found[0] for role, found in platform.processes().items() if role in {"zygote", "ledger"}}
        for role, pid in {"platform": platform.process.pid, **pids}.items():
            try:
                samples.add(f"{role}: private memory, KiB", at_s, _status(pid, "RssAnon"))
                samples.add(f"{role}: descriptors", at_s, len(list(Path(f"/proc/{pid}/fd").iterdir())))
                samples.add(f"{role}: threads", at_s, _status(pid, "Threads"))
            except OSError:
                continue  # it was just killed
        samples.add("zombies", at_s, _zombies(platform.process.pid))
        samples.add("series in /metrics", at_s, platform.admin("GET", "/metrics").text.count("\n"))
        samples.add("files of logs", at_s, sum(path.is_file() for path in platform.home.logs.rglob("*")))
        samples.add("files in run", at_s, sum(1 for _ in platform.home.run.rglob("*")))
        samples.add("files in the store", at_s, sum(path.is_file() for path in platform.home.store.rglob("*")))


def _status(pid: int, key: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise OSError(f"no {key} of {pid}")


def _zombies(parent: int) -> int:
    found = 0
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        try:
            found += Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
    return found


def soak(folder: Path, minutes: float, say: Callable[[str], None]) -> tuple[Series, list[tuple[str, str]], list[str]]:
    """Run; return the samples, further figures, and what went wrong."""
    plan = Plan(
        ENDLESS, kills=("replicas", "zygote", "ledger"), minutes=minutes, pace=0.5, connections=12, pause_s=0.05
    )
    port = free_port(plan.seed)
    with RunningPlatform(folder, "--port", str(port), SERVE_LOG_LEVEL="WARNING") as platform:
        for deployed in DEPLOYED:
            platform.deploy("--file", deployed.write(folder / "models" / deployed.name))
        samples, ended = Series(), threading.Event()
        watcher = threading.Thread(target=watch, args=(platform, samples, ended))
        begin_s = time.monotonic()
        killer = Killer(platform, plan.kills, plan.seed, plan.pace)
        killer.spare_after(begin_s + 20 * minutes, ("zygote", "ledger"))
        churn, load = Churn(platform, folder), Load(folder, plan, port)
        watcher.start()
        try:
            load.follow(killer, say, begin_s + 60 * minutes)
        finally:
            churn.end()
            ended.set()
            watcher.join()
            load.end()
        stop(platform)
        verified = json.loads(platform.cli("bill", "verify", "--json").out)
        problems = [*churn.problems, *load.failures, *leftovers(platform), *verified["problems"]]
        if load.counts["failed"]:
            problems.append(f"{load.counts['failed']} requests failed: see {folder}/clients-0.tsv")
        requests = verified["requests"]
        journal = sum(path.stat().st_size for path in platform.home.journal.rglob("*.jsonl"))
        figures = [
            ("requests", f"{requests:,}"),
            ("replica lives", f"{verified['lives']:,}"),
            ("replicas killed", f"{killer.killed.counts['replicas']:,}"),
            ("zygotes and ledgers killed", f"{killer.killed.counts['zygote']:,}, {killer.killed.counts['ledger']:,}"),
            ("deployments replaced; made and removed", f"{churn.rounds:,}; {churn.rounds:,}"),
            ("journal, bytes a request", f"{journal / max(1, requests):,.0f}"),
            ("ledger, bytes a request", f"{platform.home.ledger.stat().st_size / max(1, requests):,.0f}"),
        ]
    return samples, figures, problems


def holds(samples: Series, name: str) -> bool:
    """Return whether what was sampled under `name` does not grow, or not beyond its bound."""
    if name in BOUNDS:
        return max(value for _, value in samples.points[name]) <= BOUNDS[name]
    return is_flat(name, samples.judged(name))


def report(samples: Series, figures: list[tuple[str, str]], problems: list[str], minutes: float) -> str:
    rows = []
    for name, points in sorted(samples.points.items()):
        kept = samples.judged(name)
        grown = growth(kept)
        good = f"below {BOUNDS[name]:,}" if name in BOUNDS else "flat"
        verdict = good if holds(samples, name) else "GROWS"
        first, last = points[0][1], points[-1][1]
        rows.append(
            (name, f"{first:,}", f"{median([v for _, v in kept]):,.0f}", f"{last:,}", f"{grown:+,.1f}", verdict)
        )
    headers = ("what", "at first", "median", "at last", "trend over the time judged", "verdict")
    verdict = "\n".join(f"PROBLEM: {problem}" for problem in problems) or "Everything is flat."
    return (
        f"{minutes:g} minutes. {machine()}\n\n{table(('what', 'count'), figures)}\n\n{table(headers, rows)}\n\n"
        f"Judged from {FLAT.begin:.0%} of the time on.\n\n{verdict}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--folder", type=Path, help="keep home and logs here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="serve-soak.") as folder:
        samples, figures, problems = soak(options.folder or Path(folder), options.minutes, show)
    problems += [f"{name} grows" for name in samples.points if not holds(samples, name)]
    sys.stdout.write(report(samples, figures, problems, options.minutes) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
