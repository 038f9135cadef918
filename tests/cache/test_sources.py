"""Local models, and which source a URL leads to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cache.manifest import Manifest
from cache.sources.base import Progress
from cache.sources.fetch import fetch
from cache.store import ModelStore
from serve.core.errors import FilesMissing, InvalidSpec, SourceChanged, Unsupported
from tests.cache.harness import leftovers, manifest_of, open_store, put, read_back

FILES = {"model.onnx": b"graph", "data/w.bin": b"w" * 3_000_000, "data/copy.bin": b"w" * 3_000_000}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return open_store(tmp_path / "store", 64 << 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my model"
    for name, data in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


async def test_a_folder_comes_in_whole_with_progress_to_the_end(store: ModelStore, folder: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    manifest = await fetch(str(folder), store, lambda done, total: seen.append((done, total)))
    assert manifest == manifest_of(FILES)
    assert read_back((await store.publish(manifest)).path) == FILES
    assert seen == sorted(seen)
    assert seen[0] == (0, 3_000_005)
    assert seen[-1] == (3_000_005, 3_000_005)


async def test_contents_that_are_here_are_not_copied_again(store: ModelStore, folder: Path) -> None:
    await put(store, b"graph")
    seen: list[int] = []
    await fetch(str(folder), store, lambda done, _: seen.append(done))
    assert seen[0] == 5


async def test_a_file_and_a_file_url_keep_the_name(store: ModelStore, folder: Path) -> None:
    expected = manifest_of({"model.onnx": b"graph"})
    assert await fetch(str(folder / "model.onnx"), store) == expected
    assert await fetch((folder / "model.onnx").as_uri(), store) == expected
    assert await fetch(folder.as_uri().replace("file:", "FILE:"), store) == manifest_of(FILES)


@pytest.mark.parametrize("change", ["other bytes", "longer", "shorter", "gone"])
async def test_a_file_that_changes_while_it_is_read_is_noticed(
    store: ModelStore, folder: Path, tmp_path: Path, change: str
) -> None:
    file = folder / "model.onnx"

    def change_it(done_bytes: int, total_bytes: int | None) -> None:
        if done_bytes == 0:  # hashed, not yet copied
            if change == "gone":
                file.unlink(missing_ok=True)
            else:
                file.write_bytes({"other bytes": b"grapH", "longer": b"graph and more", "shorter": b"gr"}[change])

    with pytest.raises(SourceChanged, match=r"model\.onnx changed"):
        await fetch(str(file), store, change_it)
    assert store.used_bytes == 0
    assert leftovers(tmp_path / "store") == []


async def test_what_is_not_there_is_named(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(FilesMissing, match=r"gone\.onnx"):
        await fetch(str(tmp_path / "gone.onnx"), store)


async def test_a_pipe_is_refused_and_not_waited_for(store: ModelStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidSpec, match="pipe"):
        await fetch(str(tmp_path / "pipe"), store)


async def test_schemes_without_a_source_are_refused_with_what_to_do(store: ModelStore) -> None:
    with pytest.raises(Unsupported, match="download the model and deploy the file"):
        await fetch("s3://bucket/model.onnx", store)
    with pytest.raises(InvalidSpec, match="https://"):
        await fetch("ftp://host/model.onnx", store)
    with pytest.raises(InvalidSpec, match="another machine"):
        await fetch("file://host/model.onnx", store)


class BucketSource:
    """What S3 will be."""

    async def fetch(self, url: str, store: ModelStore, progress: Progress) -> Manifest:
        await put(store, b"from a bucket")
        progress(13, 13)
        return manifest_of({"model.onnx": b"from a bucket"})


async def test_a_new_kind_of_source_needs_one_line_in_the_table(store: ModelStore) -> None:
    manifest = await fetch("S3://bucket/model.onnx", store, sources={"s3": BucketSource()})
    assert read_back((await store.publish(manifest)).path) == {"model.onnx": b"from a bucket"}
