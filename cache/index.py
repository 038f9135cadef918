"""What the store holds, in memory: contents, models, pins, holds and reserved space."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cache.evict import Candidate, Victims, choose, priority
from cache.manifest import Manifest
from serve.core.clock import NS_PER_S, Clock
from serve.core.errors import Conflict, InvalidSpec, NotFound, StorageFull

HOLD_S = 900
"""How long contents stay for a model that is being brought in piece by piece, from the last sign of it."""


@dataclass(slots=True)
class _Entry:
    manifest: Manifest
    blobs: frozenset[str]
    cost_s: float
    frequency: int
    priority: float


@dataclass(frozen=True, slots=True)
class _Hold:
    blobs: frozenset[str]
    until_ns: int


class Index:
    """Any thread may call; one lock makes each method atomic. It is never held over I/O, so the loop may call too."""

    def __init__(self, budget_bytes: int, clock: Clock) -> None:
        self.budget_bytes = budget_bytes
        self.quarantine_bytes = 0
        self.evictions = 0
        """Models dropped for space, ever."""
        self._clock = clock
        self._lock = threading.Lock()
        self._blobs: dict[str, int] = {}
        self._models: dict[str, _Entry] = {}
        self._pins: Counter[str] = Counter()
        self._holds: dict[str, _Hold] = {}
        self._reserved: dict[str, int] = {}
        self._eviction_clock = 0.0

    # Reading ---------------------------------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        """Return contents, space promised to contents on their way, and quarantine."""
        with self._lock:
            return self._used()

    def has_blob(self, sha256: str) -> bool:
        with self._lock:
            return sha256 in self._blobs

    def absent(self, manifest: Manifest) -> list[str]:
        """Return the paths whose contents are not here. Raises InvalidSpec where one has another size than listed."""
        with self._lock:
            for file in manifest.files:
                size_bytes = self._blobs.get(file.sha256, file.size)
                if size_bytes != file.size:
                    raise InvalidSpec(f"{file.path!r} has {size_bytes} bytes, not {file.size}; hash the files again")
            return [file.path for file in manifest.files if file.sha256 not in self._blobs]

    def manifest(self, digest: str) -> Manifest:
        """Return the manifest of a model that is here; raise NotFound."""
        with self._lock:
            return self._entry(digest).manifest

    def manifests(self) -> list[Manifest]:
        with self._lock:
            return [entry.manifest for entry in self._models.values()]

    def __contains__(self, digest: object) -> bool:
        with self._lock:
            return digest in self._models

    # Contents on their way -------------------------------------------------------------------------------------------

    def hold(self, key: str, blobs: Iterable[str]) -> frozenset[str]:
        """Keep `blobs` from being evicted for `HOLD_S`, in the name of `key`; return those that are here now."""
        with self._lock:
            wanted = frozenset(blobs)
            self._holds[key] = _Hold(wanted, self._clock.monotonic_ns() + HOLD_S * NS_PER_S)
            return wanted & self._blobs.keys()

    def claim(self, key: str, size_bytes: int, disk_free_bytes: int) -> Victims:
        """Promise `size_bytes` more to `key`; return what the caller must remove from disk for it.

        Frees what the budget or the disk lacks. Raises StorageFull, then nothing changed.
        """
        with self._lock:
            short_bytes = max(self._used() + size_bytes - self.budget_bytes, size_bytes - disk_free_bytes)
            victims = self._take(short_bytes, size_bytes, disk_free_bytes)
            self._reserved[key] = self._reserved.get(key, 0) + size_bytes
            return victims

    def unclaim(self, key: str) -> None:
        with self._lock:
            self._reserved.pop(key, None)

    def add_blob(self, key: str, sha256: str, size_bytes: int) -> None:
        """A content is on disk: what was claimed for it is settled, and it is held until a model has it."""
        self.hold(sha256, (sha256,))
        with self._lock:
            self._reserved.pop(key, None)
            self._blobs[sha256] = size_bytes

    # Models ----------------------------------------------------------------------------------------------------------

    def restore(self, blobs: Mapping[str, int], manifests: Iterable[Manifest], quarantine_bytes: int) -> None:
        """Take over what was found on disk."""
        with self._lock:
            self._blobs.update(blobs)
            self.quarantine_bytes = quarantine_bytes
        for manifest in manifests:
            self.add_model(manifest, 1.0)

    def add_model(self, manifest: Manifest, cost_s: float) -> None:
        """A model is on disk (or is wanted again). Its holds end: from now on pins protect it."""
        with self._lock:
            entry = self._models.get(manifest.digest)
            if entry is None:
                entry = _Entry(manifest, frozenset(manifest.blobs), cost_s, 0, 0.0)
                self._models[manifest.digest] = entry
            for key in (manifest.digest, *entry.blobs):
                self._holds.pop(key, None)
            self._use(entry)

    def pin(self, digest: str) -> None:
        """Keep a model until `unpin`. Counts as a use. Raises NotFound."""
        with self._lock:
            self._use(self._entry(digest))
            self._pins[digest] += 1

    def unpin(self, digest: str) -> None:
        with self._lock:
            self._pins[digest] -= 1
            if self._pins[digest] <= 0:
                del self._pins[digest]

    def drop(self, digest: str) -> Victims:
        """Forget a model; return what the caller must remove from disk. Raises Conflict where it is pinned."""
        with self._lock:
            if digest not in self._models:
                return Victims((), frozenset(), 0, self._eviction_clock)
            if digest in self._pins:
                raise Conflict(f"the model {digest[:12]} is in use; delete the deployments that have it first")
            blobs = self._models.pop(digest).blobs - self._references().keys() - self._held()
            freed_bytes = sum(self._blobs.pop(blob) for blob in blobs)
            return Victims((digest,), blobs, freed_bytes, self._eviction_clock)

    def drop_damaged(self, blobs: frozenset[str]) -> tuple[list[str], int]:
        """Forget contents and every model that has one of them, pinned or not; return those models and the bytes."""
        with self._lock:
            models = [digest for digest, entry in self._models.items() if entry.blobs & blobs]
            for digest in models:
                del self._models[digest]
            return models, sum(self._blobs.pop(blob, 0) for blob in blobs)

    def evict(self, needed_bytes: int) -> Victims:
        """Forget the models of lowest worth until `needed_bytes` are free. Raises StorageFull, then nothing changed."""
        with self._lock:
            return self._take(needed_bytes, needed_bytes)

    # With the lock held ----------------------------------------------------------------------------------------------

    def _used(self) -> int:
        return sum(self._blobs.values()) + sum(self._reserved.values()) + self.quarantine_bytes

    def _entry(self, digest: str) -> _Entry:
        try:
            return self._models[digest]
        except KeyError:
            raise NotFound(f"the store has no model {digest[:12]}; deploy it again to bring it here") from None

    def _use(self, entry: _Entry) -> None:
        entry.frequency += 1
        entry.priority = priority(self._eviction_clock, entry.frequency, entry.cost_s, entry.manifest.size_bytes)

    def _references(self) -> Counter[str]:
        return Counter(blob for entry in self._models.values() for blob in entry.blobs)

    def _held(self) -> frozenset[str]:
        now_ns = self._clock.monotonic_ns()
        self._holds = {key: hold for key, hold in self._holds.items() if hold.until_ns > now_ns}
        return frozenset(blob for hold in self._holds.values() for blob in hold.blobs)

    def _take(self, needed_bytes: int, wanted_bytes: int, disk_free_bytes: int | None = None) -> Victims:
        if needed_bytes <= 0:
            return Victims((), frozenset(), 0, self._eviction_clock)
        candidates = [
            Candidate(digest, entry.priority, entry.blobs)
            for digest, entry in self._models.items()
            if digest not in self._pins
        ]
        victims = choose(candidates, self._references(), self._blobs, self._held(), needed_bytes, self._eviction_clock)
        if victims is None:
            raise self._full(wanted_bytes, disk_free_bytes)
        for digest in victims.models:
            del self._models[digest]
        for blob in victims.blobs:
            del self._blobs[blob]
        self._eviction_clock = victims.clock
        self.evictions += len(victims.models)
        return victims

    def _pinned_bytes(self) -> int:
        pinned = {blob for digest in self._pins if digest in self._models for blob in self._models[digest].blobs}
        return sum(self._blobs[blob] for blob in pinned)

    def _full(self, wanted_bytes: int, disk_free_bytes: int | None) -> StorageFull:
        used_bytes, pinned_bytes = self._used(), self._pinned_bytes()
        disk = "" if disk_free_bytes is None else f", and its disk has {shown_bytes(disk_free_bytes)} free"
        return StorageFull(
            f"no space for {shown_bytes(wanted_bytes)} more: the store holds {shown_bytes(used_bytes)} of "
            f"{shown_bytes(self.budget_bytes)}, {shown_bytes(pinned_bytes)} of it in use by deployments{disk}; "
            "delete deployments that are not needed, or raise SERVE_STORE_BUDGET where the disk has room",
            needed_bytes=wanted_bytes,
            used_bytes=used_bytes,
            pinned_bytes=pinned_bytes,
            budget_bytes=self.budget_bytes,
            disk_free_bytes=disk_free_bytes,
        )


def shown_bytes(count: int) -> str:
    """Return a size as people write it: `17 B`, `1.5 MiB`."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"
