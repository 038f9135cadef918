"""What the tests of the store share: models as dictionaries of bytes, and how to bring one in."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from cache.manifest import FileEntry, Manifest
from cache.store import ModelStore, StoredModel
from cache.threads import in_thread
from serve.core.clock import VirtualClock

Files = Mapping[str, bytes]


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def manifest_of(files: Files) -> Manifest:
    return Manifest(tuple(FileEntry(path, len(data), sha256_of(data)) for path, data in files.items()))


def open_store(root: Path, budget_bytes: int = 1 << 20, clock: VirtualClock | None = None) -> ModelStore:
    return ModelStore(root, budget_bytes, clock or VirtualClock())


async def chunks_of(data: bytes, size: int = 3) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def put(store: ModelStore, data: bytes) -> None:
    await store.put_blob(sha256_of(data), len(data), chunks_of(data))


async def bring(store: ModelStore, files: Files) -> StoredModel:
    """Do what an upload does."""
    manifest = manifest_of(files)
    contents = {sha256_of(data): data for data in files.values()}
    for entry in store.missing(manifest):
        await put(store, contents[entry.sha256])
    return await store.publish(manifest)


def models(store: ModelStore) -> list[StoredModel]:
    """Return what the store holds, as its index knows it."""
    return [store._stored(manifest) for manifest in store._index.manifests()]


def has(store: ModelStore, digest: str) -> bool:
    return digest in store._index


async def evict(store: ModelStore, needed_bytes: int) -> int:
    """Make room as an intake does; return what was freed."""
    return (await in_thread(store._drop, lambda: store._index.evict(needed_bytes))).freed_bytes


def read_back(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def disk_bytes(root: Path) -> int:
    """Return what the store's files occupy, each inode once."""
    sizes = {
        path.stat().st_ino: path.stat().st_size
        for path in root.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    return sum(sizes.values())


def leftovers(root: Path) -> list[str]:
    return [path.name for path in (root / "tmp").iterdir()]
