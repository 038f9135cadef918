"""Space: used never passes the budget, pinned models stay, and a full store or disk is said with figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache.index import HOLD_S, shown_bytes
from serve.core.clock import VirtualClock
from serve.core.errors import Conflict, FilesMissing, NotFound, StorageFull
from tests.cache.harness import (
    bring,
    chunks_of,
    disk_bytes,
    evict,
    has,
    leftovers,
    manifest_of,
    models,
    open_store,
    put,
    sha256_of,
)

A, B, C = {"m": b"a" * 40}, {"m": b"b" * 40}, {"m": b"c" * 40}


async def test_a_model_that_nobody_pinned_makes_room(tmp_path: Path) -> None:
    store = open_store(tmp_path, budget_bytes=100)
    first = await bring(store, A)
    second = await bring(store, B)
    store.pin(first.digest).release()
    third = await bring(store, C)
    assert {model.digest for model in models(store)} == {first.digest, third.digest}
    assert not has(store, second.digest)
    assert store.used_bytes == 80 == disk_bytes(tmp_path)
    assert store.evictions == 1


async def test_what_was_costly_to_bring_stays_longer(tmp_path: Path) -> None:
    store = open_store(tmp_path, budget_bytes=100)
    await put(store, A["m"])
    costly = await store.publish(manifest_of(A), cost_s=60.0)
    await bring(store, B)
    await bring(store, C)
    assert has(store, costly.digest)


async def test_pinned_models_are_never_evicted_and_the_refusal_has_figures(tmp_path: Path) -> None:
    store = open_store(tmp_path, budget_bytes=100)
    pins = [store.pin((await bring(store, files)).digest) for files in (A, B)]
    with pytest.raises(StorageFull, match="SERVE_STORE_BUDGET") as caught:
        await bring(store, C)
    assert caught.value.details["needed_bytes"] == 40
    assert caught.value.details["pinned_bytes"] == caught.value.details["used_bytes"] == 80
    assert caught.value.details["budget_bytes"] == 100
    assert len(models(store)) == 2
    assert leftovers(tmp_path) == []
    pins[1].release()
    await bring(store, C)
    assert has(store, manifest_of(A).digest)


async def test_pins_count_and_release_only_once(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    stored = await bring(store, A)
    first, second = store.pin(stored.digest), store.pin(stored.digest)
    first.release()
    first.release()
    with pytest.raises(Conflict, match="in use"):
        await store.delete(stored.digest)
    with second:
        pass
    await store.delete(stored.digest)
    assert store.used_bytes == 0 == disk_bytes(tmp_path)
    with pytest.raises(NotFound):
        store.pin(stored.digest)


async def test_deleting_keeps_what_other_models_share(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    one = await bring(store, {"m": b"shared", "x": b"one"})
    two = await bring(store, {"m": b"shared", "x": b"two"})
    await store.delete(one.digest)
    await store.delete(one.digest)
    assert (two.path / "m").read_bytes() == b"shared"
    assert store.used_bytes == 9 == disk_bytes(tmp_path)


async def test_a_model_on_its_way_keeps_its_contents_while_others_come_in(tmp_path: Path) -> None:
    clock = VirtualClock()
    store = open_store(tmp_path, 100, clock)
    cached = await bring(store, A)
    arriving = manifest_of({"m": A["m"], "x": b"x" * 20})
    assert [entry.path for entry in store.missing(arriving)] == ["x"]
    await put(store, b"x" * 20)
    with pytest.raises(StorageFull):
        await bring(store, {"m": b"d" * 41})
    stored = await store.publish(arriving)
    assert (stored.path / "m").read_bytes() == A["m"]
    assert has(store, cached.digest)


async def test_an_upload_that_nobody_finished_makes_room_after_a_while(tmp_path: Path) -> None:
    clock = VirtualClock()
    store = open_store(tmp_path, 100, clock)
    store.missing(manifest_of(A))
    await put(store, A["m"])
    with pytest.raises(StorageFull):
        await bring(store, {"m": b"d" * 80})
    clock.advance(HOLD_S + 1)
    await bring(store, {"m": b"d" * 80})
    with pytest.raises(FilesMissing):
        await store.publish(manifest_of(A))


async def test_a_content_larger_than_the_budget_is_refused_before_a_byte_is_read(tmp_path: Path) -> None:
    store = open_store(tmp_path, budget_bytes=100)
    await bring(store, A)
    chunks = chunks_of(b"x" * 101)
    with pytest.raises(StorageFull):
        await store.put_blob(sha256_of(b"x" * 101), 101, chunks)
    assert await anext(chunks) == b"xxx"
    assert has(store, manifest_of(A).digest)


async def test_a_content_of_unknown_size_stops_at_the_budget(tmp_path: Path) -> None:
    store = open_store(tmp_path, budget_bytes=3 << 20)
    with pytest.raises(StorageFull):
        await store.receive(chunks_of(bytes(5 << 20), 1 << 20))
    assert store.used_bytes == 0 == disk_bytes(tmp_path)


async def test_quarantine_counts_and_is_the_first_to_go(tmp_path: Path) -> None:
    store = open_store(tmp_path, budget_bytes=100)
    stored = await bring(store, A)
    kept = await bring(store, B)
    path = stored.path / "m"
    path.chmod(0o644)
    path.write_bytes(b"x" * 40)
    with pytest.raises(Exception, match="damaged"):
        await store.verify(stored.digest)
    assert store.used_bytes == 80
    await bring(store, A)
    assert store.used_bytes == 80 == disk_bytes(tmp_path)
    assert has(store, kept.digest)


async def test_evict_frees_what_was_asked_or_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for files in (A, B, C):
        await bring(store, files)
    assert await evict(store, 50) == 80
    with store.pin(models(store)[0].digest), pytest.raises(StorageFull):
        await evict(store, 1)
    with pytest.raises(StorageFull):
        await evict(store, 41)
    assert len(models(store)) == 1


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (20 << 30, "20.0 GiB"), (1 << 50, "1024.0 TiB")],
)
def test_sizes_are_shown_as_people_write_them(count: int, text: str) -> None:
    assert shown_bytes(count) == text
