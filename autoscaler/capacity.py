"""Memory admission: does one more replica fit, and if not, which idle one goes first? Pure.

Memory is a hard budget of measured reservations. An idle replica is a cache entry: it is worth what it would cost to
start it again, times how often it was used, per byte it occupies. Greedy-dual with size and frequency (Cao and Irani,
USITS 1997; Cherkasova, HP Labs 1998; for keep-alive of functions: FaasCache, ASPLOS 2021): its value is

    age at last use + uses × cold start seconds / bytes

and the age of the whole cache rises to the value of whatever is evicted, so that what is not used any more loses
against what is, without anybody touching its entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from serve.core.ids import ReplicaId, RevisionKey

_MIB = 1 << 20
PROCESS_BYTES = 64 * _MIB
"""A process with its libraries before any model, executed anew. One forked from the zygote shares most of it."""


CORES_OVERCOMMIT = 2


@dataclass(frozen=True, slots=True)
class Room:
    """The budget and what is taken of it."""

    budget_bytes: int
    reserved_bytes: int
    """By all replicas that have not exited, those on their way out included."""
    leaving_bytes: int = 0
    """The part of `reserved_bytes` that belongs to replicas on their way out."""

    @property
    def free_bytes(self) -> int:
        return self.budget_bytes - self.reserved_bytes


@dataclass(frozen=True, slots=True)
class Resident:
    """A ready replica that nobody is entitled to: a possible victim."""

    id: ReplicaId
    key: RevisionKey
    memory_bytes: int
    value: float
    """From `value`. The lowest goes first."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """It fits now."""


@dataclass(frozen=True, slots=True)
class Evict:
    """It fits once these have exited."""

    victims: tuple[Resident, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """It does not fit beside what is busy, or what frees its place is still exiting. Requests queue."""

    reason: str


@dataclass(frozen=True, slots=True)
class TooLarge:
    """It would not fit if it were alone."""

    reason: str


Verdict = Admitted | Evict | Wait | TooLarge


def crowded(need_cores: int, busy_cores: int, cores: int) -> str | None:
    """Say why one more replica would only make those that compute slower; None where there are cores for it.

    `busy_cores`: granted to replicas that start or have requests. Twice the machine's cores are given out: a
    replica with requests inside does not compute all the time.
    """
    limit = CORES_OVERCOMMIT * cores
    if busy_cores + need_cores <= limit:
        return None
    return (
        f"replicas that start or have requests hold {busy_cores} of {limit} cores ({cores} here): more would be slower"
    )


def value(age: float, uses: int, cold_start_s: float, memory_bytes: int) -> float:
    """Return what keeping an idle replica is worth. `age`: of the cache, when it was last used."""
    return age + max(1, uses) * cold_start_s / max(1, memory_bytes)


def estimate_bytes(model_bytes: int) -> int:
    """Return what to reserve for a model that was never loaded.

    While an engine builds its session, the file's bytes and the weights it makes of them are in memory together, so
    twice the model; and a process around them.
    """
    return 2 * model_bytes + PROCESS_BYTES


def admit(need_bytes: int, room: Room, idle: Iterable[Resident]) -> Verdict:
    """Say how a replica of `need_bytes` can be had. `idle` is only looked at if it does not fit as things are."""
    figures = f"{mib(need_bytes)} are needed, {mib(room.reserved_bytes)} of {mib(room.budget_bytes)} are taken"
    if need_bytes > room.budget_bytes:
        return TooLarge(
            f"one replica needs {mib(need_bytes)} and all replicas together may hold {mib(room.budget_bytes)}: raise "
            "the platform's memory budget (SERVE_MEMORY_BUDGET), or deploy a smaller model"
        )
    if need_bytes <= room.free_bytes:
        return Admitted()
    missing_bytes = need_bytes - room.free_bytes - room.leaving_bytes
    if missing_bytes <= 0:
        return Wait(f"{figures}; {mib(room.leaving_bytes)} are being given back")
    candidates = sorted(idle, key=lambda replica: replica.value)
    idle_bytes = sum(replica.memory_bytes for replica in candidates)
    if idle_bytes < missing_bytes:
        return Wait(f"{figures} and only {mib(idle_bytes)} of that are idle: requests queue")
    victims = _cheapest(candidates, missing_bytes)
    names = ", ".join(replica.id for replica in victims)
    return Evict(victims, f"{figures}; {names} is worth least")


def reclaim(room: Room, idle: Iterable[Resident]) -> tuple[Resident, ...]:
    """Return the idle replicas to evict because reservations grew over the budget; all of them if that is too few."""
    missing_bytes = -room.free_bytes - room.leaving_bytes
    if missing_bytes <= 0:
        return ()
    return _cheapest(sorted(idle, key=lambda replica: replica.value), missing_bytes)


def _cheapest(candidates: list[Resident], missing_bytes: int) -> tuple[Resident, ...]:
    """Return the least valuable candidates that free `missing_bytes`, sparing those the others make unnecessary."""
    victims: list[Resident] = []
    freed_bytes = 0
    for replica in candidates:
        if freed_bytes >= missing_bytes:
            break
        victims.append(replica)
        freed_bytes += replica.memory_bytes
    for replica in reversed(victims.copy()):
        if freed_bytes - replica.memory_bytes >= missing_bytes:
            victims.remove(replica)
            freed_bytes -= replica.memory_bytes
    return tuple(victims)


def mib(size_bytes: int) -> str:
    """Return a size for people: `12 MiB`, `1.5 GiB`."""
    if size_bytes >= 1024 * _MIB:
        return f"{size_bytes / (1024 * _MIB):.3g} GiB"
    return f"{size_bytes / _MIB:.3g} MiB"
