"""kill -9, seeded: whom and when."""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.chaos.workload import DEPLOYED
from tests.e2e.platforms import RunningPlatform
from tests.e2e.processes import MARK, wait_until

KINDS = ("replicas", "zygote", "ledger", "platform")
_MEAN_S = {"replicas": 0.2, "zygote": 3.0, "ledger": 4.0, "platform": 6.0}
"""Between two kills of a kind; each interval is 0.5 to 1.5 times as long."""


@dataclass
class Killed:
    """What was killed so far."""

    counts: Counter[str] = field(default_factory=Counter)
    """Kills by kind."""
    states: Counter[str] = field(default_factory=Counter)
    """What the killed replicas were: starting, idle, busy, draining."""
    platforms_ns: list[int] = field(default_factory=list)
    """Monotonic time just before each kill of the platform."""
    back_s: list[float] = field(default_factory=list)
    """From each of those until the next platform answered."""
    replays: int = 0
    """Requests that platforms sent again, as far as their metrics could be read before they died."""
    orphans: list[str] = field(default_factory=list)
    """Replicas that outlived their platform until the next one answered."""


class Killer:
    """Kills what belongs to one platform. Used from one thread."""

    def __init__(self, platform: RunningPlatform, kinds: tuple[str, ...], seed: int, pace: float = 1.0) -> None:
        """`pace`: how much oftener than usual."""
        self.killed = Killed()
        self._platform = platform
        self._chance = random.Random(seed)
        self._pace = pace
        self._spared: dict[str, float] = {}
        now_s = time.monotonic()
        self._due_s = {kind: now_s + self._interval_s(kind) for kind in kinds}

    def spare_after(self, at_s: float, kinds: tuple[str, ...]) -> None:
        """Kill no more of these kinds from monotonic time `at_s` on."""
        self._spared = dict.fromkeys(kinds, at_s)

    @property
    def next_s(self) -> float:
        """Monotonic time of the next kill."""
        return min(self._due_s.values())

    def kill_due(self) -> None:
        """Kill what is due."""
        for kind, due_s in self._due_s.items():
            if due_s <= time.monotonic():
                if due_s >= self._spared.get(kind, math.inf):
                    self._due_s[kind] = math.inf
                    continue
                if kind == "replicas":
                    self._kill_replica()
                elif kind == "platform":
                    self._kill_platform()
                else:
                    self._kill_process(kind)
                self._due_s[kind] = time.monotonic() + self._interval_s(kind)

    def _interval_s(self, kind: str) -> float:
        return _MEAN_S[kind] / self._pace * self._chance.uniform(0.5, 1.5)

    def _kill_replica(self) -> None:
        """Kill one in a state chosen first, so that those who start or drain are hit, too."""
        names = [deployed.name for deployed in DEPLOYED]
        self._chance.shuffle(names)
        for name in names:
            by_state: dict[str, list[int]] = {}
            for replica in self._platform.get(f"/deployments/{name}")["replicas"]:
                if replica["pid"] is not None:
                    state = replica["state"]
                    state = state if state != "ready" else "busy" if replica["in_flight"] else "idle"
                    by_state.setdefault(state, []).append(replica["pid"])
            if by_state:
                state = self._chance.choice(sorted(by_state))
                if self._kill(self._chance.choice(by_state[state])):
                    self.killed.counts["replicas"] += 1
                    self.killed.states[state] += 1
                return

    def _kill_process(self, kind: str) -> None:
        for pid in self._platform.processes().get(kind, []):
            self.killed.counts[kind] += self._kill(pid)

    def _kill_platform(self) -> None:
        replicas = list(self._started(self._platform.replicas()))
        self.killed.replays += replays(self._platform)
        self.killed.platforms_ns.append(time.monotonic_ns())
        self._platform.crash()
        self._platform.start()
        self.killed.back_s.append((time.monotonic_ns() - self.killed.platforms_ns[-1]) / 1e9)
        self.killed.counts["platform"] += 1
        left = set(replicas) & set(self._started(pid for pid, _ in replicas))
        self.killed.orphans += [f"replica {pid} outlived its platform" for pid, _ in left]

    def _kill(self, pid: int) -> bool:
        """Kill `pid` if it is still one of the platform's."""
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            if f"{MARK}={self._platform.mark}".encode() not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                return False
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True

    def _started(self, pids: Iterator[int] | list[int]) -> Iterator[tuple[int, str]]:
        """Yield each live process with the time of its start: pids are used again."""
        for pid in pids:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    yield pid, fields[19]


def replays(platform: RunningPlatform) -> int:
    """Return how many requests this platform sent again."""
    try:
        text = platform.admin("GET", "/metrics").text
    except httpx.TransportError:
        return 0
    found = re.search(r"^serve_replays_total (\S+)", text, re.MULTILINE)
    return round(float(found[1])) if found else 0


def stop(platform: RunningPlatform) -> None:
    """Take away what keeps replicas alive, and return when none is left."""
    assert platform.api("DELETE", "/deployments/steady").is_success
    wait_until(lambda: not platform.replicas(), "everything scales to zero", 60)
