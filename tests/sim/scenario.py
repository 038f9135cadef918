"""From a seed to a story: what is deployed, how its replicas behave, who calls, and what goes wrong when."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from billing.sync import SyncPolicy
from simulator.habits import Habits, Start, one_of
from simulator.platform import Machine
from simulator.work import Effect, Work

MIB = 1 << 20
_BAD_STARTS = [start for start in Start if start is not Start.FINE]


class Act(StrEnum):
    CALL = "call"
    LEAVE = "leave"
    KILL = "kill a replica"
    STALL = "stall a replica"
    STEP_WALL = "step the wall clock"
    DISK_FULL = "disk full"
    DISK_FREE = "disk free"
    SYNC_FAILS = "sync fails"
    DEPLOY = "deploy"
    ROLLBACK = "rollback"
    DELETE = "delete"
    KILL_PLATFORM = "kill the platform"
    LOSE_POWER = "lose power"
    RESTART = "restart"
    BAD_STARTS = "starts go bad"
    GOOD_STARTS = "starts are fine"


FAULTS: list[Act] = [act for act in Act if act not in {Act.CALL, Act.DISK_FREE, Act.GOOD_STARTS}]
"""Each story has some of them: with all at once, every story would be the same."""


class Step(NamedTuple):
    at_s: float
    act: Act
    name: str
    """Of the deployment, where one is meant."""
    choice: int
    """Decides what the act leaves open."""
    work: Work | None = None
    wait_s: float | None = None


@dataclass
class Scenario:
    seed: int
    machine: Machine
    specs: list[dict[str, Any]]
    habits: dict[str, Habits]
    steps: list[Step]
    faults: list[Act]
    job_s: float
    """Longest job of a thread: registry writes, syncs."""
    effects: list[Effect] = field(default_factory=list)

    @classmethod
    def of(cls, seed: int) -> Scenario:
        chance = random.Random(seed)
        names = ["ant", "bee", "cat"][: chance.choice([1, 1, 2, 3])]
        faults: list[Act] = [fault for fault in FAULTS if chance.random() < chance.choice([0.1, 0.3])]
        effects = [Effect.ANSWER] * 12 + [effect for effect in Effect if chance.random() < 0.3]
        machine = Machine(
            memory_budget_bytes=chance.choice([110, 200, 2000]) * MIB,
            cores=chance.choice([1, 2, 8]),
            drain_timeout_s=chance.choice([0.5, 5.0]),
            checkpoint_interval_s=chance.choice([2.0, 30.0]),
            journal_sync=chance.choice(list(SyncPolicy)),
        )
        steps = _traffic(chance, names, effects, [fault for fault in faults if fault is not Act.RESTART])
        if Act.RESTART in faults:
            steps.append(Step(chance.uniform(1, 10), Act.RESTART, names[0], 0))
        return cls(
            seed=seed,
            machine=machine,
            specs=[_spec(chance, name) for name in names],
            habits={name: _habits(chance) for name in names},
            steps=sorted(steps, key=lambda step: step.at_s),
            faults=faults,
            job_s=chance.choice([0.0, 0.001, 0.2]),
            effects=effects,
        )


def _spec(chance: random.Random, name: str) -> dict[str, Any]:
    least = chance.choice([0, 0, 0, 0, 1])
    return {
        "name": name,
        "engine": chance.choice(["scripted"] * 5 + ["python"]),
        "min": least,
        "max": chance.choice([None, 1, 2, 4]),
        "idle": chance.choice([0.5, 2.0, 8.0]),
        "concurrency": chance.choice([None, 1, 1, 2, 4]),
        "max_batch": chance.choice([1, 4]),
        "target": chance.choice([0.5, 0.7, 1.0]),
        "queue": chance.choice([0, 2, 5, 1000, 1000]),
        "timeout": chance.choice([1.5, 5.0, 20.0]),
        "execution_timeout": chance.choice([1.0, 3.0]),
        "start_timeout": chance.choice([1.5, 6.0]),
        "stable_window": 6.0,
        "panic_window": chance.choice([0.5, 3.0, 3.0]),
        "threads": 1,
    }


def _habits(chance: random.Random) -> Habits:
    return Habits(
        spawn_s=one_of(0.004, 0.02),
        load_s=one_of(*chance.choice([(0.05,), (0.05, 0.3, 2.5), (0.3, 0.8)])),
        leave_s=one_of(0.0, 0.05),
        memory_bytes=chance.choice([20, 45, 100]) * MIB,
        growth_bytes=chance.choice([0, 0, 3]) * MIB,
        is_batchable=chance.random() < 0.5,
        delay_s=one_of(*chance.choice([(0.0,), (0.0, 0.0001), (0.0, 0.003)])),
        lag_s=one_of(*chance.choice([(0.0,), (0.0, 0.0002), (0.0, 0.0001, 0.01, 0.3)])),
        is_deaf_to_drain=chance.random() < 0.07,
        is_deaf_to_end=chance.random() < 0.07,
        leaves_socket_open=chance.random() < 0.07,
        repeats_stats=chance.random() < 0.2,
    )


def _traffic(chance: random.Random, names: list[str], effects: list[Effect], faults: list[Act]) -> list[Step]:
    """Return bursts of calls, with faults among and after them."""
    steps: list[Step] = []
    at_s = 0.0
    for _ in range(chance.randint(2, 6)):
        at_s += chance.choice([0.0, 0.2, 1.0, 3.0, 9.0]) * chance.uniform(0.5, 1.0)
        name = chance.choice(names)
        for _ in range(chance.choice([1, 2, 3, 7])):
            work = Work(chance.choice([500, 20_000, 400_000]), chance.randint(1, 3), chance.choice(effects))
            wait_s = chance.choice([None] * 8 + [0.0, 0.4])
            steps.append(Step(at_s, Act.CALL, name, chance.getrandbits(32), work, wait_s))
            at_s += chance.choice([0.0, 0.0, 0.001, 0.1])
        for fault in faults:
            if chance.random() < 0.35:
                fault_s = max(0.0, at_s + chance.uniform(-0.3, 1.0))
                steps += _fault(chance, fault, fault_s, chance.choice(names))
    return steps


def _fault(chance: random.Random, act: Act, at_s: float, name: str) -> list[Step]:
    """Return a fault, and its end where it has one."""
    choice = chance.getrandbits(32)
    steps = [Step(at_s, act, name, choice)]
    if act in {Act.DISK_FULL, Act.SYNC_FAILS}:
        steps.append(Step(at_s + chance.choice([0.1, 2.0]), Act.DISK_FREE, name, choice))
    if act is Act.BAD_STARTS:
        steps.append(Step(at_s + chance.choice([0.5, 5.0]), Act.GOOD_STARTS, name, choice))
    return steps


def bad_start(choice: int) -> Start:
    return _BAD_STARTS[choice % len(_BAD_STARTS)]
