"""The store: contents come in once and whole, models appear at once, and what is damaged is not served."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cache.manifest import FileEntry, Manifest
from cache.store import ModelStore
from serve.core.errors import FilesMissing, IntegrityError, InvalidSpec, NotFound, SourceChanged, SourceUnreachable
from tests.cache.harness import bring, chunks_of, leftovers, manifest_of, models, open_store, put, read_back, sha256_of

MODEL = {"model.onnx": b"graph", "data/weights.bin": b"weights" * 100, "data/copy.bin": b"weights" * 100, "empty": b""}


def _is_same(one: Path, other: Path) -> bool:
    return one.samefile(other)


class Feed:
    """A content that arrives when the test says so."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()

    async def chunks(self) -> AsyncIterator[bytes]:
        self.started.set()
        yield self.data[:2]
        await self.go_on.wait()
        yield self.data[2:]


async def test_a_published_model_has_its_files_read_only_under_their_names(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    stored = await bring(store, MODEL)
    assert read_back(stored.path) == MODEL
    assert stored.path == store.path(stored.digest)
    assert stored.digest == manifest_of(MODEL).digest
    assert all(path.stat().st_mode & 0o777 == 0o444 for path in stored.path.rglob("*") if path.is_file())
    assert leftovers(tmp_path) == []


async def test_equal_contents_occupy_space_once(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    stored = await bring(store, MODEL)
    other = await bring(store, {"model.onnx": b"graph", "readme": b"different"})
    assert stored.size_bytes == 5 + 700
    assert store.used_bytes == 5 + 700 + 9
    assert _is_same(stored.path / "data/copy.bin", stored.path / "data/weights.bin")
    assert _is_same(stored.path / "model.onnx", other.path / "model.onnx")


async def test_missing_names_each_content_once_and_nothing_that_is_here(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    await put(store, b"graph")
    missing = store.missing(manifest_of(MODEL))
    assert sorted(entry.sha256 for entry in missing) == sorted([sha256_of(b"weights" * 100), sha256_of(b"")])


async def test_publishing_without_all_contents_shows_nothing_and_names_the_files(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    manifest = manifest_of(MODEL)
    await put(store, b"graph")
    with pytest.raises(FilesMissing) as caught:
        await store.publish(manifest)
    assert caught.value.details["files"] == ["data/copy.bin", "data/weights.bin", "empty"]
    assert list((tmp_path / "models").iterdir()) == []
    with pytest.raises(NotFound):
        store.path(manifest.digest)


async def test_a_manifest_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    await put(store, b"graph")
    with pytest.raises(InvalidSpec, match="5 bytes, not 6"):
        await store.publish(Manifest((FileEntry("model.onnx", 6, sha256_of(b"graph")),)))


async def test_publishing_again_and_at_the_same_time_is_the_same(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    manifest = manifest_of(MODEL)
    for data in set(MODEL.values()):
        await put(store, data)
    results = await asyncio.gather(*(store.publish(manifest) for _ in range(5)))
    assert set(results) == {await store.publish(manifest)}
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("sent", [b"graPh", b"grap", b"graph!", b""], ids=["other", "short", "long", "nothing"])
async def test_other_bytes_than_announced_are_refused_and_leave_nothing(tmp_path: Path, sent: bytes) -> None:
    store = open_store(tmp_path)
    with pytest.raises(SourceChanged, match="deploy it again"):
        await store.put_blob(sha256_of(b"graph"), 5, chunks_of(sent))
    assert store.used_bytes == 0
    assert leftovers(tmp_path) == []
    assert list((tmp_path / "blobs").iterdir()) == []


async def test_a_digest_that_is_none_is_refused_before_it_becomes_a_path(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with pytest.raises(InvalidSpec):
        await store.put_blob("../../etc/passwd", 1, chunks_of(b"x"))
    for unknown in ("../..", "", "f" * 64):
        with pytest.raises(NotFound):
            store.path(unknown)


async def test_two_puts_of_one_content_write_it_once(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    first, second = Feed(b"content"), Feed(b"content")
    async with asyncio.TaskGroup() as group:
        group.create_task(store.put_blob(sha256_of(b"content"), 7, first.chunks()))
        await first.started.wait()
        waiting = group.create_task(store.put_blob(sha256_of(b"content"), 7, second.chunks()))
        await asyncio.sleep(0)
        assert not waiting.done()
        first.go_on.set()
    assert not second.started.is_set()
    assert waiting.result() is False, "it was here already"
    assert store.used_bytes == 7


async def test_the_second_put_takes_over_when_the_first_is_cancelled(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    first, second = Feed(b"content"), Feed(b"content")
    second.go_on.set()
    writing = asyncio.ensure_future(store.put_blob(sha256_of(b"content"), 7, first.chunks()))
    await first.started.wait()
    waiting = asyncio.ensure_future(store.put_blob(sha256_of(b"content"), 7, second.chunks()))
    await asyncio.sleep(0)
    writing.cancel()
    await waiting
    assert second.started.is_set()
    assert writing.cancelled()
    assert store.used_bytes == 7
    assert leftovers(tmp_path) == []


async def test_the_second_put_takes_over_when_the_first_sends_other_bytes(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    wrong, right = Feed(b"cOntent"), Feed(b"content")
    wrong.go_on.set()
    right.go_on.set()
    results = await asyncio.gather(
        store.put_blob(sha256_of(b"content"), 7, wrong.chunks()),
        store.put_blob(sha256_of(b"content"), 7, right.chunks()),
        return_exceptions=True,
    )
    assert isinstance(results[0], SourceChanged)
    assert results[1] is True
    assert store.used_bytes == 7


@pytest.mark.parametrize("turns", range(0, 24, 2))
async def test_a_cancelled_put_leaves_no_file_and_no_claim_wherever_it_was(tmp_path: Path, turns: int) -> None:
    store = open_store(tmp_path)
    writing = asyncio.ensure_future(put(store, b"content"))
    for _ in range(turns):
        await asyncio.sleep(0.0002)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    kept = len(list((tmp_path / "blobs").iterdir()))
    assert store.used_bytes == 7 * kept
    assert leftovers(tmp_path) == []
    await put(store, b"content")
    assert store.used_bytes == 7


@pytest.mark.looptime
async def test_a_sender_that_stops_sending_is_given_up(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    feed = Feed(b"content")
    with pytest.raises(SourceUnreachable, match="no bytes came"):
        await store.put_blob(sha256_of(b"content"), 7, feed.chunks())
    assert store.used_bytes == 0
    assert leftovers(tmp_path) == []


async def test_a_store_that_is_opened_again_has_the_same_models_and_contents(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    stored = await bring(store, MODEL)
    await put(store, b"loose")
    again = open_store(tmp_path)
    assert models(again) == [stored] == models(store)
    assert again.used_bytes == store.used_bytes
    assert again.manifest(stored.digest) == manifest_of(MODEL)
    assert again.missing(manifest_of({"a": b"loose"})) == []


async def test_opening_sweeps_temporary_files_and_models_that_are_not_whole(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    stored = await bring(store, MODEL)
    broken = await bring(store, {"a": b"1", "b": b"2"})
    (broken.path / "b").unlink()
    (tmp_path / "tmp" / "leftover").write_bytes(b"half")
    (tmp_path / "tmp" / "folder").mkdir()
    (tmp_path / "models" / "junk").mkdir()
    again = open_store(tmp_path)
    assert models(again) == [stored]
    assert leftovers(tmp_path) == []
    assert [path.name for path in (tmp_path / "models").iterdir()] == [stored.digest]
    assert (await bring(again, {"a": b"1", "b": b"2"})).digest == broken.digest


def _damage(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"X" + path.read_bytes()[1:])


async def test_verify_passes_what_is_sound_and_leaves_it(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    stored = await bring(store, MODEL)
    await store.verify(stored.digest)
    assert read_back(stored.path) == MODEL
    with pytest.raises(NotFound):
        await store.verify("f" * 64)


async def test_damaged_bytes_are_put_aside_with_every_model_that_has_them(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    stored = await bring(store, MODEL)
    sharing = await bring(store, {"other": b"graph"})
    sound = await bring(store, {"w": b"weights" * 100})
    _damage(stored.path / "model.onnx")
    with store.pin(stored.digest), pytest.raises(IntegrityError, match=r"model\.onnx") as caught:
        await store.verify(stored.digest)
    assert sorted(caught.value.details["models"]) == sorted([stored.digest, sharing.digest])
    assert models(store) == [sound]
    assert [path.name for path in (tmp_path / "quarantine").iterdir()] == [sha256_of(b"graph")]
    assert [entry.path for entry in store.missing(manifest_of(MODEL))] == ["model.onnx"]
    assert read_back((await bring(store, MODEL)).path) == MODEL
    await store.verify(stored.digest)
    assert open_store(tmp_path).used_bytes == store.used_bytes


async def test_a_file_that_somebody_deleted_counts_as_damage(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    stored = await bring(store, MODEL)
    (stored.path / "empty").unlink()
    with pytest.raises(IntegrityError, match="empty"):
        await store.verify(stored.digest)
    assert read_back((await bring(store, MODEL)).path) == MODEL


async def test_receive_returns_the_digest_of_what_came(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert await store.receive(chunks_of(b"content")) == (sha256_of(b"content"), 7)
    assert await store.receive(chunks_of(b"content"), 7) == (sha256_of(b"content"), 7)
    with pytest.raises(SourceChanged):
        await store.receive(chunks_of(b"content"), 8)
    assert store.used_bytes == 7
    assert leftovers(tmp_path) == []


async def test_the_loop_runs_while_bytes_are_written(tmp_path: Path) -> None:
    store: ModelStore = open_store(tmp_path, budget_bytes=64 << 20)
    data = os.urandom(24 << 20)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.ensure_future(count())
    await store.put_blob(sha256_of(data), len(data), chunks_of(data, 1 << 20))
    counting.cancel()
    assert turns > 24
