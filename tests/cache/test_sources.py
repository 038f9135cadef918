"""Which source a URL leads to."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache.manifest import Manifest
from cache.sources.base import Progress
from cache.sources.fetch import fetch
from cache.store import ModelStore
from serve.core.errors import InvalidSpec, Unsupported
from tests.cache.harness import manifest_of, open_store, put, read_back


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return open_store(tmp_path / "store", 64 << 20)


async def test_schemes_without_a_source_are_refused_with_what_to_do(store: ModelStore) -> None:
    with pytest.raises(Unsupported, match="download the model and deploy the file"):
        await fetch("s3://bucket/model.onnx", store)
    with pytest.raises(InvalidSpec, match="http:// or https://"):
        await fetch("ftp://host/model.onnx", store)


async def test_the_platform_reads_no_paths_of_its_own_machine(store: ModelStore, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"graph")
    for url in (str(file), file.as_uri(), file.as_uri().upper(), "file://host/model.onnx", ""):
        with pytest.raises(InvalidSpec, match="upload the file"):
            await fetch(url, store)
    assert store.used_bytes == 0


class BucketSource:
    """What S3 will be."""

    async def fetch(self, url: str, store: ModelStore, progress: Progress) -> Manifest:
        await put(store, b"from a bucket")
        progress(13, 13)
        return manifest_of({"model.onnx": b"from a bucket"})


async def test_a_new_kind_of_source_needs_one_line_in_the_table(store: ModelStore) -> None:
    manifest = await fetch("S3://bucket/model.onnx", store, sources={"s3": BucketSource()})
    assert read_back((await store.publish(manifest)).path) == {"model.onnx": b"from a bucket"}
