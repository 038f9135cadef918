"""The content-addressed store of models: bytes come in once, are verified, shared, pinned and evicted."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from cache.disk import BlobWriter, Disk, open_stored
from cache.evict import Victims
from cache.index import Index
from cache.intake import changed, disk_full_said, parts
from cache.manifest import READ_BYTES, FileEntry, Manifest, check_sha256
from cache.threads import in_thread
from serve.core.clock import Clock
from serve.core.errors import FilesMissing, IntegrityError

_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EIO, errno.EISDIR, errno.ELOOP, errno.EUCLEAN, errno.EBADMSG}
"""What reading a lost or damaged file ends with. Others, such as too many open files, say nothing about it."""


_LOOKED_AT_ON_THE_LOOP = 16
"""Files: so few take less than handing them to a thread, which may be busy with an upload."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model in the store. `path`: absolute folder with its files, which are read-only."""

    digest: str
    path: Path
    size_bytes: int


class Pin:
    """Keeps one model in the store until released, once: `release()`, or as a context manager."""

    def __init__(self, index: Index, digest: str) -> None:
        self._index = index
        self._digest: str | None = digest

    def release(self) -> None:
        """Let go. Does nothing the second time."""
        if self._digest is not None:
            self._index.unpin(self._digest)
            self._digest = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class ModelStore:
    """Owned by one event loop and, by the home's lock, one process. File work runs in threads.

    What is visible on disk changes under one lock (`_disk_lock`), in threads only. The loop reads and pins through
    the index, which never waits for a disk. Making one blocks while it lists the folders and sweeps what a crash left;
    pins are rebuilt by its user then.

    To bring a model in: `missing`, then `put_blob` for each, then `publish`. What `missing` saw and `put_blob` brought
    stays for `index.HOLD_S`, so that an eviction in between does not undo it.
    """

    def __init__(self, root: Path, budget_bytes: int, clock: Clock) -> None:
        self._disk = Disk(root.absolute())
        self._disk_lock = threading.Lock()
        self._index = Index(budget_bytes, clock)
        self._flights: dict[str, asyncio.Event] = {}
        """Contents being written now; owned by the loop."""
        found = self._disk.open()
        self._index.restore(found.blobs, found.manifests, found.quarantine_bytes)

    # What is here ----------------------------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        """Return the bytes of all contents, of those on their way as announced, and of the quarantine."""
        return self._index.used_bytes

    @property
    def budget_bytes(self) -> int:
        return self._index.budget_bytes

    @property
    def evictions(self) -> int:
        """Return how many models were dropped for space since the store was opened."""
        return self._index.evictions

    def path(self, digest: str) -> Path:
        """Return the folder with a model's files. Raises NotFound."""
        return self._disk.model_path(self.manifest(digest).digest)

    def manifest(self, digest: str) -> Manifest:
        """Return what a model consists of. Raises NotFound."""
        return self._index.manifest(digest)

    def missing(self, manifest: Manifest) -> list[FileEntry]:
        """Return the files whose contents must be put before `publish`, each content once. Those here are held."""
        here = self._index.hold(manifest.digest, manifest.blobs)
        return list({file.sha256: file for file in manifest.files if file.sha256 not in here}.values())

    def pin(self, digest: str) -> Pin:
        """Keep a model from eviction and deletion until the pin is released; pins count. Raises NotFound."""
        self._index.pin(digest)
        return Pin(self._index, digest)

    # Bringing bytes in -----------------------------------------------------------------------------------------------

    async def put_blob(self, sha256: str, size: int, chunks: AsyncIterator[bytes]) -> bool:
        """Store one content of `size` bytes. Returns False, without reading `chunks`, where it is here already.

        Where somebody else is writing the same content, waits for them; if they fail, writes it from `chunks`.
        Raises SourceChanged (other bytes than announced), SourceUnreachable (nothing came for a long time),
        StorageFull; then nothing is left behind.
        """
        check_sha256(sha256)
        while (landed := self._flights.get(sha256)) is not None:
            await landed.wait()
        if sha256 in self._index.hold(sha256, (sha256,)):
            return False
        landed = self._flights[sha256] = asyncio.Event()
        try:
            await self._receive(chunks, size, sha256)
        finally:
            del self._flights[sha256]
            landed.set()
        return True

    async def receive(self, chunks: AsyncIterator[bytes], size_bytes: int | None = None) -> tuple[str, int]:
        """Store a content whose digest is not known beforehand; return its sha256 and size in bytes.

        `size_bytes`: announced size, if any; other than that raises SourceChanged. Raises as `put_blob`.
        """
        return await self._receive(chunks, size_bytes, None)

    async def publish(self, manifest: Manifest, cost_s: float = 1.0) -> StoredModel:
        """Make the model visible as a folder, whole or not at all. Again is the same.

        `cost_s`: seconds it took to bring here; what was costly is evicted later. Raises FilesMissing (`files` in
        details: contents that were not put) or StorageFull.
        """
        if manifest.digest in self._index:
            with contextlib.suppress(IntegrityError):  # what was put aside is asked for now
                await self.check(manifest.digest)
        await in_thread(self._publish, manifest, cost_s)
        return self._stored(manifest)

    # Looking whether bytes are what they were -------------------------------------------------------------------------

    async def check(self, digest: str) -> None:
        """Look whether a model's files were touched; only if so, read them all. Raises as `verify`.

        For every use of a model: what is damaged, cut, replaced or gone is not used.
        """
        manifest = self.manifest(digest)
        is_large = len(manifest.files) > _LOOKED_AT_ON_THE_LOOP
        look = self._disk.is_untouched
        if not (await in_thread(look, manifest) if is_large else look(manifest)):
            await self.verify(digest)

    # Taking bytes out ------------------------------------------------------------------------------------------------

    async def verify(self, digest: str) -> None:
        """Read a model again. Raises NotFound, or IntegrityError after putting damaged contents aside.

        Then every model with such a content is gone from the store (`models` in details), pinned or not, so that
        `missing` asks for the bytes anew; replicas that have them mapped are not touched.
        """
        manifest = self.manifest(digest)
        with self.pin(digest):
            damaged = [file for file in manifest.files if not await self._is_sound(digest, file)]
        if not damaged:
            await in_thread(self._disk.seal, manifest)
            return
        blobs = frozenset(file.sha256 for file in damaged)
        models = await in_thread(self._put_aside, blobs)
        files = [file.path for file in damaged]
        raise IntegrityError(
            f"stored bytes of the model {digest[:12]} are damaged ({', '.join(files)}); check the disk, then "
            "deploy the model again: its bytes are fetched anew",
            files=files,
            models=models,
        )

    async def delete(self, digest: str) -> None:
        """Remove a model and the contents only it has. Does nothing where it is not here; Conflict if pinned."""
        await in_thread(self._drop, lambda: self._index.drop(digest))

    # On the loop -----------------------------------------------------------------------------------------------------

    def _stored(self, manifest: Manifest) -> StoredModel:
        return StoredModel(manifest.digest, self._disk.model_path(manifest.digest), manifest.size_bytes)

    async def _receive(
        self, chunks: AsyncIterator[bytes], size_bytes: int | None, sha256: str | None
    ) -> tuple[str, int]:
        async with contextlib.aclosing(parts(chunks)) as gathered:
            with disk_full_said(size_bytes):
                return await self._write(gathered, size_bytes, sha256)

    async def _write(
        self, gathered: AsyncIterator[bytes], size_bytes: int | None, sha256: str | None
    ) -> tuple[str, int]:
        writer = self._disk.new_blob()
        key = writer.path.name
        try:
            await in_thread(self._disk.open_blob, writer)
            if size_bytes is not None:
                await in_thread(self._make_room, key, size_bytes)
            async for part in gathered:
                if size_bytes is None:
                    await in_thread(self._make_room, key, len(part))
                elif writer.size_bytes + len(part) > size_bytes:
                    raise changed(sha256, f"more than the announced {size_bytes} bytes came")
                await in_thread(writer.write, part)
            return await in_thread(self._keep, writer, size_bytes, sha256)
        finally:
            self._index.unclaim(key)
            await in_thread(writer.discard)

    async def _is_sound(self, digest: str, file: FileEntry) -> bool:
        try:
            with open_stored(self._disk.model_path(digest) / file.path) as opened:
                hasher = hashlib.sha256()
                while await in_thread(_feed, opened, hasher):
                    pass
        except OSError as error:
            if error.errno not in _DAMAGE:
                raise
            return False
        return hasher.hexdigest() == file.sha256

    # In threads ------------------------------------------------------------------------------------------------------

    def _make_room(self, key: str, size_bytes: int) -> None:
        with self._disk_lock:
            if self._index.quarantine_bytes and (
                size_bytes > self._disk.free_bytes() or self.used_bytes + size_bytes > self._index.budget_bytes
            ):
                self._disk.clear_quarantine()
                self._index.quarantine_bytes = self._disk.quarantine_bytes()
            victims = self._index.claim(key, size_bytes, self._disk.free_bytes())
            self._disk.remove(victims.models, victims.blobs)

    def _keep(self, writer: BlobWriter, size_bytes: int | None, sha256: str | None) -> tuple[str, int]:
        if size_bytes is not None and writer.size_bytes != size_bytes:
            raise changed(sha256, f"{writer.size_bytes} bytes came, not the announced {size_bytes}")
        found = writer.seal()
        if sha256 is not None and found != sha256:
            raise changed(sha256, f"the bytes that came have the digest {found}")
        with self._disk_lock:
            if not self._index.has_blob(found):
                self._disk.keep(writer, found)
            self._index.add_blob(writer.path.name, found, writer.size_bytes)
        return found, writer.size_bytes

    def _publish(self, manifest: Manifest, cost_s: float) -> None:
        with self._disk_lock, disk_full_said(None):
            if manifest.digest not in self._index:
                if lost := self._disk.lost(manifest.blobs):
                    self._index.drop_damaged(lost)
                if absent := self._index.absent(manifest):
                    raise FilesMissing(
                        f"the store lacks {len(absent)} of the model's files ({', '.join(absent[:5])}); send them, "
                        "then publish again",
                        files=absent,
                    )
                self._disk.assemble(manifest)
            self._index.add_model(manifest, cost_s)

    def _put_aside(self, blobs: frozenset[str]) -> list[str]:
        with self._disk_lock:
            models, _ = self._index.drop_damaged(blobs)
            self._disk.quarantine(blobs, models)
            self._index.quarantine_bytes = self._disk.quarantine_bytes()
        return models

    def _drop(self, choose: Callable[[], Victims]) -> Victims:
        with self._disk_lock:
            victims = choose()
            self._disk.remove(victims.models, victims.blobs)
            return victims


def _feed(file: BinaryIO, hasher: hashlib._Hash) -> bool:
    data = file.read(READ_BYTES)
    hasher.update(data)
    return bool(data)
