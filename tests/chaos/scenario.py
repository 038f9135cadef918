"""The whole run: a platform, its deployments, clients, the killer, and the audit."""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.audit import Audit, audit
from tests.chaos.clients import Order, command
from tests.chaos.killer import KINDS, Killed, Killer, replays, stop
from tests.chaos.workload import DEPLOYED
from tests.e2e.platforms import ROOT, RunningPlatform

_PORTS = range(20_000, 30_000)
"""Below those that the kernel gives to clients: one of these might connect to itself while nobody listens."""
ENDLESS = 1 << 40
"""Requests, where only the time is bounded."""
_RESTING = {"platform": 1, "ledger": 1, "zygote": 1}


@dataclass(frozen=True)
class Plan:
    requests: int
    seed: int = 1
    kills: tuple[str, ...] = KINDS
    minutes: float | None = None
    """Longest time of the load; None: until all requests are sent."""
    pace: float = 1.0
    """How much oftener than usual is killed."""
    processes: int = 1
    connections: int = 24
    """Clients of each process."""
    pause_s: float = 0.0
    """Longest pause of a client before each request."""


@dataclass
class Outcome:
    """What a run was, and what the audit says of it."""

    plan: Plan
    killed: Killed
    audit: Audit
    duration_s: float
    problems: list[str] = field(default_factory=list)
    """All that must not be; empty: nothing was lost."""

    @property
    def requests(self) -> int:
        """Requests that came to an end: attempts less those that were tried again."""
        counts = self.audit.counts
        return counts["answered"] + counts["left"]


def run(folder: Path, plan: Plan, say: Callable[[str], None]) -> Outcome:
    """Run `plan` below `folder`. `say` takes a line of progress."""
    port = free_port(plan.seed)
    with RunningPlatform(folder, "--port", str(port), SERVE_LOG_LEVEL="WARNING") as platform:
        for deployed in DEPLOYED:
            platform.deploy("--file", deployed.write(folder / "models" / deployed.name))
        load = Load(folder, plan, port)
        begin_s = time.monotonic()
        killer = Killer(platform, plan.kills, plan.seed, plan.pace)
        try:
            load.follow(killer, say, None if plan.minutes is None else begin_s + 60 * plan.minutes)
        finally:
            load.end()
        duration_s = time.monotonic() - begin_s
        killer.killed.replays += replays(platform)
        stop(platform)
        outcome = Outcome(plan, killer.killed, audit(platform, load.logs, killer.killed.platforms_ns), duration_s)
        outcome.problems = [*outcome.audit.problems, *killer.killed.orphans, *load.failures, *leftovers(platform)]
    return outcome


def free_port(seed: int) -> int:
    """Return a port on which nobody listens, and from which no client connects by chance."""
    for offset in range(len(_PORTS)):
        port = _PORTS[(seed * 37 + offset) % len(_PORTS)]
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port")


def leftovers(platform: RunningPlatform) -> list[str]:
    """Return what should not be there at rest: processes, zombies, files."""
    found = []
    running = {role: len(pids) for role, pids in platform.processes().items()}
    if running != _RESTING:
        found.append(f"processes at rest: {running}")
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] == "Z" and int(fields[1]) == platform.process.pid:
            found.append(f"zombie {path.parent.name}")
    home = platform.home
    found += [f"left in the home: {path.name}" for path in home.path.glob(".*")]
    found += [f"left in the run folder: {path.name}" for path in home.run.rglob("*") if path.is_socket()]
    return found


class Load:
    """The client processes of one run."""

    def __init__(self, folder: Path, plan: Plan, port: int) -> None:
        share, rest = divmod(plan.requests, plan.processes)
        self.logs = [folder / f"clients-{place}.tsv" for place in range(plan.processes)]
        self.failures: list[str] = []
        self._goal = f"{plan.requests:,}" if plan.requests < ENDLESS else "no end"
        self._said: dict[int, Counter[str]] = {}
        self._processes = [
            self._started(
                Order(
                    port=port,
                    seed=plan.seed,
                    prefix=f"p{place}-",
                    requests=share + (rest if place == 0 else 0),
                    connections=plan.connections,
                    retries="platform" in plan.kills,
                    log=str(log),
                    pause_s=plan.pause_s,
                ),
                folder / f"clients-{place}.err",
            )
            for place, log in enumerate(self.logs)
        ]

    def _started(self, order: Order, errors: Path) -> subprocess.Popen[bytes]:
        with errors.open("wb") as file:
            return subprocess.Popen(command(order), stdout=subprocess.PIPE, stderr=file, cwd=ROOT)

    def follow(self, killer: Killer, say: Callable[[str], None], until_s: float | None) -> None:
        """Kill what is due and tell how far it is, until all clients have ended, or are told to at `until_s`."""
        begin_s = said_s = time.monotonic()
        with selectors.DefaultSelector() as selector:
            for process in self._processes:
                assert process.stdout is not None
                selector.register(process.stdout, selectors.EVENT_READ, process)
            while selector.get_map():
                now_s = time.monotonic()
                if until_s is not None and now_s >= until_s:
                    self._end_early()
                    until_s = None
                for key, _ in selector.select(max(0.0, killer.next_s - now_s)):
                    line = key.fileobj.readline()  # type: ignore[union-attr]
                    if line:
                        self._said[key.data.pid] = Counter(json.loads(line))
                    else:
                        selector.unregister(key.fileobj)
                if selector.get_map():
                    killer.kill_due()
                if time.monotonic() - said_s >= 5:
                    said_s = time.monotonic()
                    say(self._line(killer.killed, said_s - begin_s))
        self.failures += [f"clients ended with {process.wait()}" for process in self._processes if process.wait()]

    def end(self) -> None:
        """Leave no process behind."""
        for process in self._processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def _end_early(self) -> None:
        for process in self._processes:
            process.terminate()

    @property
    def counts(self) -> Counter[str]:
        """Attempts by outcome, and failures, as far as the clients have said."""
        return sum(self._said.values(), Counter())

    def _line(self, killed: Killed, elapsed_s: float) -> str:
        counts = self.counts
        done = counts["answered"] + counts["left"]
        kills = ", ".join(f"{kind} {killed.counts[kind]}" for kind in killed.counts)
        return (
            f"{elapsed_s:6.0f} s  {done:,} of {self._goal} ({done / elapsed_s:,.0f}/s), "
            f"failed {counts['failed']}, broken {counts['broken']}; killed: {kills}"
        )


def show(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
