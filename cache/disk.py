"""The store's folders and files. Every change becomes visible with one rename, so a crash leaves nothing half done.

::

    blobs/<sha256>               one content, read-only; models link to it
    models/<digest>/files/…      the model as its user had it (hard links to blobs)
    models/<digest>/manifest.json
    quarantine/<sha256>          bytes that were not what their name says
    tmp/                         what is being written; swept at start

ONNX Runtime reads external data through hard links. The `onnx` package refuses to (`onnx.load` with external data, and
its checker by path): who reads a graph from the store passes `load_external_data=False`.

All of it blocks; one caller at a time (the store's disk lock), but for `BlobWriter`, which has a file of its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import stat
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from cache.manifest import Manifest
from serve.core.errors import ServeError

log = logging.getLogger(__name__)

SEALED_NS = 1_000_000_000
"""Modification time of every content, 1970-01-01T00:00:01Z: any write to one changes it, and a look tells."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a store holds when it is opened. `blobs`: size in bytes by sha256."""

    blobs: dict[str, int]
    manifests: list[Manifest]
    quarantine_bytes: int


class BlobWriter:
    """A temporary file that becomes a content. One caller at a time; whoever made it calls `discard` in the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._file: FileIO | None = None
        self._hasher = hashlib.sha256()

    def open(self) -> None:
        self._file = FileIO(self.path, "x")

    def write(self, data: bytes | bytearray) -> None:
        assert self._file is not None
        self._hasher.update(data)
        self.size_bytes += len(data)
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def seal(self) -> str:
        """Bring everything to the disk, read-only, and return the sha256."""
        assert self._file is not None
        os.fchmod(self._file.fileno(), 0o444)
        os.utime(self._file.fileno(), ns=(SEALED_NS, SEALED_NS))
        os.fsync(self._file.fileno())
        self._file.close()
        return self._hasher.hexdigest()

    def discard(self) -> None:
        """Close and remove what was not kept."""
        if self._file is not None:
            self._file.close()
        self.path.unlink(missing_ok=True)


class Disk:
    """The folders of one store. Paths in results are absolute; what fails raises OSError unless it says otherwise."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "blobs"
        self._models = root / "models"
        self._quarantine = root / "quarantine"
        self._tmp = root / "tmp"

    def open(self) -> Found:
        """Make the folders, sweep what a crash left, and say what is here. Models that are not whole are removed."""
        self._make_folders()
        for leftover in self._tmp.iterdir():
            _remove_tree(leftover)
        blobs = {path.name: path.stat().st_size for path in self._blobs.iterdir()}
        manifests = []
        for path in self._models.iterdir():
            manifest = self._whole_model(path, blobs)
            if manifest is None:
                log.warning("the model %s in the store is not whole and is removed", path.name)
                self.remove((path.name,), ())
            else:
                manifests.append(manifest)
        return Found(blobs, manifests, sum(path.stat().st_size for path in self._quarantine.iterdir()))

    def _make_folders(self) -> None:
        """Also where somebody removed them while the platform runs: what comes in from now on has a place."""
        for folder in (self._root, self._blobs, self._models, self._quarantine, self._tmp):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def lost(self, blobs: Iterable[str]) -> frozenset[str]:
        """Return those contents that are not here, whatever was here before."""
        return frozenset(sha256 for sha256 in blobs if not (self._blobs / sha256).is_file())

    def model_path(self, digest: str) -> Path:
        """Return the folder of a model's files, whether it exists or not."""
        return self._models / digest / "files"

    def is_untouched(self, manifest: Manifest) -> bool:
        """Tell whether every file is what was put there, as far as size, kind and time of modification show.

        A few microseconds a file: it stands in the way of a cold start. Rot below the file system needs `verify`.
        """
        folder = self.model_path(manifest.digest)
        try:
            return all(_is_sealed(folder / entry.path, entry.size) for entry in manifest.files)
        except OSError:
            return False

    def seal(self, manifest: Manifest) -> None:
        """Mark files whose bytes are right as untouched: those that were copied here with the home, or touched."""
        folder = self.model_path(manifest.digest)
        for entry in manifest.files:
            if not _is_sealed(folder / entry.path, entry.size):
                os.utime(folder / entry.path, ns=(SEALED_NS, SEALED_NS), follow_symlinks=False)

    def free_bytes(self) -> int:
        state = os.statvfs(self._root)
        return state.f_bavail * state.f_frsize

    def new_blob(self) -> BlobWriter:
        """Return a writer for one content, not open yet."""
        return BlobWriter(self._new_tmp())

    def open_blob(self, writer: BlobWriter) -> None:
        """Make the writer's file. Raises OSError."""
        try:
            writer.open()
        except FileNotFoundError:
            self._make_folders()
            writer.open()

    def keep(self, writer: BlobWriter, sha256: str) -> None:
        """Make a sealed file visible as a content."""
        writer.path.rename(self._blobs / sha256)
        _sync(self._blobs)

    def assemble(self, manifest: Manifest) -> None:
        """Make a model visible, whole. Its contents must be here. Raises OSError, then nothing is visible."""
        stage = self._new_tmp()
        try:
            files = stage / "files"
            files.mkdir(mode=0o700, parents=True)
            folders = {stage, files}
            for entry in manifest.files:
                target = files / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.hardlink_to(self._blobs / entry.sha256)
                folders.update(parent for parent in target.parents if parent.is_relative_to(files))
            with (stage / "manifest.json").open("x") as file:
                json.dump(manifest.to_json(), file)
                file.flush()
                os.fsync(file.fileno())
            for folder in folders:
                _sync(folder)
            stage.rename(self._models / manifest.digest)
        except BaseException:
            _remove_tree(stage)
            raise
        _sync(self._models)

    def remove(self, models: Iterable[str], blobs: Iterable[str]) -> None:
        """Remove models, then contents that nothing links to any more. What cannot be removed is logged."""
        for digest in models:
            doomed = self._new_tmp()
            try:
                (self._models / digest).rename(doomed)
            except OSError as error:
                log.warning("the model %s cannot be removed from the store: %s", digest, error)
            _remove_tree(doomed)
        for sha256 in blobs:
            self._unlink(self._blobs / sha256)

    def quarantine(self, blobs: Iterable[str], models: Iterable[str]) -> None:
        """Put damaged contents aside. They go before their models: a crash between leaves models that are not whole."""
        self._make_folders()
        for sha256 in blobs:
            path = self._blobs / sha256
            if path.exists():
                path.rename(self._quarantine / sha256)
        self.remove(models, ())

    def clear_quarantine(self) -> None:
        for path in self._quarantine.iterdir():
            self._unlink(path)

    def quarantine_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._quarantine.iterdir())

    def _new_tmp(self) -> Path:
        return self._tmp / uuid.uuid4().hex

    def _whole_model(self, path: Path, blobs: dict[str, int]) -> Manifest | None:
        try:
            manifest = Manifest.from_json(json.loads((path / "manifest.json").read_bytes()))
            is_whole = manifest.digest == path.name and all(
                (path / "files" / entry.path).lstat().st_size == entry.size == blobs.get(entry.sha256)
                for entry in manifest.files
            )
        except (OSError, ValueError, ServeError):
            return None
        return manifest if is_whole else None

    def _unlink(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed from the store: %s", path, error)


def open_stored(path: Path) -> BinaryIO:
    """Open a file for reading, and no link: what it leads to is not the store's. Raises OSError."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def _is_sealed(path: Path, size_bytes: int) -> bool:
    found = path.lstat()
    return stat.S_ISREG(found.st_mode) and found.st_size == size_bytes and found.st_mtime_ns == SEALED_NS


def _sync(folder: Path) -> None:
    """Bring a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
