"""Models on this machine: a file, or a folder with everything in it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from cache.manifest import READ_BYTES, Manifest
from cache.sources.base import Progress
from cache.store import ModelStore
from cache.threads import in_thread
from serve.core.errors import InvalidSpec, SourceChanged


class LocalSource:
    """`model.onnx`, `/models/digits/`, `file:///models/digits/model.onnx`.

    Files are read twice, to name them and to copy them, so a file that somebody is writing is noticed.
    """

    async def fetch(self, url: str, store: ModelStore, progress: Progress) -> Manifest:
        path = _path(url)
        is_folder = await in_thread(path.is_dir)
        read = Manifest.from_folder if is_folder else Manifest.from_file
        manifest = await in_thread(read, path)
        total_bytes = manifest.size_bytes
        missing = store.missing(manifest)
        done_bytes = total_bytes - sum(file.size for file in missing)
        progress(done_bytes, total_bytes)
        for file in missing:
            source = path / file.path if is_folder else path
            try:
                async with aclosing(_chunks(source, done_bytes, total_bytes, progress)) as chunks:
                    await store.put_blob(file.sha256, file.size, chunks)
            except SourceChanged:
                raise SourceChanged(f"{source} changed while it was read; deploy again when it is complete") from None
            done_bytes += file.size
        progress(total_bytes, total_bytes)
        return manifest


def _path(url: str) -> Path:
    if "://" not in url:
        return Path(url).expanduser()
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise InvalidSpec(f"{url} names a file on another machine ({parts.netloc}); write file:///path")
    return Path(unquote(parts.path))


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise SourceChanged(str(error)) from error


async def _chunks(path: Path, done_bytes: int, total_bytes: int, progress: Progress) -> AsyncGenerator[bytes, None]:
    with _open(path) as file:
        while chunk := await in_thread(file.read, READ_BYTES):
            done_bytes += len(chunk)
            progress(done_bytes, total_bytes)
            yield chunk
