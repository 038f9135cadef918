"""How the replicas of a deployment behave on paper, and what happens when one is started."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

Sample = Callable[[random.Random], float]
"""Draws one value."""

_MIB = 1 << 20


def always(value: float) -> Sample:
    return lambda _chance: value


def one_of(*values: float) -> Sample:
    return lambda chance: chance.choice(values)


class Start(StrEnum):
    """What becomes of a start."""

    FINE = "fine"
    NO_PROCESS = "no process"
    SPAWN_HANGS = "spawn hangs"
    LOAD_FAILS = "load fails"
    LOAD_CRASHES = "load crashes"
    LOAD_HANGS = "load hangs"
    OUT_OF_MEMORY = "out of memory"
    """While loading, the kernel kills it."""


@dataclass
class Habits:
    """Mutable: what changes holds for replicas that are started afterwards, and for what the others do next."""

    spawn_s: Sample = field(default=always(0.01))
    load_s: Sample = field(default=always(0.1))
    leave_s: Sample = field(default=always(0.01))
    """From the last answer to the exit, once it is told to drain."""
    memory_bytes: int = 40 * _MIB
    """Most that a replica holds."""
    growth_bytes: int = 0
    """That it holds more each time it says so."""
    is_batchable: bool = False
    start: Callable[[random.Random], Start] = lambda _chance: Start.FINE
    delay_s: Sample = field(default=always(0.0))
    """On the link, each way."""
    lag_s: Sample = field(default=always(0.0))
    """Between the death of a process and the platform's hearing of it."""
    is_deaf_to_drain: bool = False
    is_deaf_to_end: bool = False
    """Does not exit when its connection closes."""
    leaves_socket_open: bool = False
    """Something that it started holds its end of the connection: no end of file is ever read."""
    repeats_stats: bool = False
