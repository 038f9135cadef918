"""A child on a file system of its own, of 1 MiB and few files, that fills it. Exits 0 where the store behaved."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serve.core.errors import StorageFull
from tests.cache.harness import (
    bring,
    disk_bytes,
    has,
    leftovers,
    manifest_of,
    models,
    open_store,
    put,
    read_back,
    sha256_of,
)

SIZE_BYTES = 700 << 10


async def _two_that_do_not_fit_together(root: Path) -> None:
    """Both are let in, because there is room for each; the kernel stops the one that writes last."""
    store = open_store(root, 1 << 30)
    gate = asyncio.Barrier(2)

    first_landed = asyncio.Event()

    async def send(data: bytes, waits: bool) -> None:
        async def chunks() -> AsyncIterator[bytes]:
            await gate.wait()
            if waits:
                await first_landed.wait()
            yield data

        await store.put_blob(sha256_of(data), len(data), chunks())
        first_landed.set()

    results = await asyncio.gather(
        *(send(os.urandom(SIZE_BYTES), waits) for waits in (False, True)), return_exceptions=True
    )
    full = [result for result in results if isinstance(result, StorageFull)]
    assert results == [None, *full], results
    assert "No space left on device" in str(full[0]), full
    assert "SERVE_HOME" in str(full[0]), full
    assert leftovers(root) == []
    assert store.used_bytes == SIZE_BYTES == disk_bytes(root)


async def _a_model_makes_room_on_a_full_disk(root: Path) -> None:
    """The budget would allow it; the disk does not."""
    store = open_store(root, 1 << 30)
    first = await bring(store, {"m": os.urandom(SIZE_BYTES)})
    second = await bring(store, {"m": os.urandom(SIZE_BYTES)})
    assert models(store) == [second]
    with store.pin(second.digest), pytest.raises(StorageFull, match="free") as caught:
        await put(store, os.urandom(SIZE_BYTES))
    assert caught.value.details["disk_free_bytes"] < SIZE_BYTES
    assert not has(store, first.digest)


async def _no_room_for_names(root: Path) -> None:
    """The file system has bytes but no inodes left while the folder of a model is made."""
    store = open_store(root, 1 << 30)
    files = {"/".join("abcdefghijklmnopqrstuvwxyz"): b"deep"}
    with pytest.raises(StorageFull, match="No space left on device"):
        await bring(store, files)
    assert not has(store, manifest_of(files).digest)
    assert leftovers(root) == []
    shallow = {"a": b"deep"}
    assert read_back((await bring(store, shallow)).path) == shallow


async def main() -> None:
    root = Path(sys.argv[1])
    for scenario in (_two_that_do_not_fit_together, _a_model_makes_room_on_a_full_disk, _no_room_for_names):
        folder = root / scenario.__name__
        await scenario(folder)
        store = open_store(folder, 1 << 30)
        for model in models(store):
            await store.delete(model.digest)
        for blob in (folder / "blobs").iterdir():
            blob.unlink()


if __name__ == "__main__":
    asyncio.run(main())
