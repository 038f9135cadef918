"""What a model consists of: relative paths, sizes and digests of its files. The manifest's digest names the model."""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serve.core.errors import InvalidSpec

MAX_FILES = 10_000
MAX_PATH_BYTES = 1024
MAX_NAME_BYTES = 255
MAX_FILE_BYTES = 1 << 62
READ_BYTES = 1 << 20

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, order=True)
class FileEntry:
    """One file. `path`: POSIX, relative to the model's folder; `size`: bytes; `sha256`: lower-case hex.

    Raises InvalidSpec for anything that could name a file elsewhere or that no file system holds.
    """

    path: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        check_path(self.path)
        check_sha256(self.sha256)
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 0 <= self.size <= MAX_FILE_BYTES:
            raise InvalidSpec(f"the size of {self.path!r} is {self.size!r}; it must be a whole number of bytes")


@dataclass(frozen=True)
class Manifest:
    """The files of one model, sorted by path whatever order they come in. Raises InvalidSpec."""

    files: tuple[FileEntry, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", tuple(sorted(self.files)))
        if not self.files:
            raise InvalidSpec("the model has no files; give a model file, or a folder that holds one")
        if len(self.files) > MAX_FILES:
            raise InvalidSpec(
                f"the model has {len(self.files)} files, and {MAX_FILES} is the limit; deploy only its own folder"
            )
        _check_clashes(self.files)

    @functools.cached_property
    def digest(self) -> str:
        """Return the model's digest: sha256 (hex) of one line `<sha256> <size> <path>\\n` per file, in path order.

        A path holds no control character, so the lines can be read in one way only.
        """
        lines = "".join(f"{file.sha256} {file.size} {file.path}\n" for file in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def blobs(self) -> dict[str, int]:
        """Return size in bytes by sha256: each content once, however many paths have it."""
        return {file.sha256: file.size for file in self.files}

    @property
    def size_bytes(self) -> int:
        """Return the bytes of the distinct contents."""
        return sum(self.blobs.values())

    def to_json(self) -> dict[str, Any]:
        return {"files": [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in self.files]}

    @classmethod
    def from_json(cls, data: Any) -> Manifest:
        """Return the manifest in `{"files": [{"path", "size", "sha256"}]}`. Raises InvalidSpec."""
        files = data.get("files") if isinstance(data, dict) else None
        if not isinstance(files, list):
            raise InvalidSpec('a manifest looks like {"files": [{"path": …, "size": …, "sha256": …}]}')
        return cls(tuple(_entry(item) for item in files))


def check_sha256(value: Any) -> str:
    """Return `value` if it is a sha256 in lower-case hex; raise InvalidSpec if not."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise InvalidSpec(f"{value!r} is not a sha256 digest: 64 lower-case hexadecimal digits")
    return value


def check_path(path: Any) -> None:
    """Raise InvalidSpec for what is no path below a model's folder."""

    def refuse(why: str) -> InvalidSpec:
        return InvalidSpec(f"the model has a file {path!r}: {why}; rename it")

    if not isinstance(path, str) or not path:
        raise refuse("a path must be text that is not empty")
    if "\\" in path:
        raise refuse("a backslash means different things on different systems")
    if _CONTROL.search(path):
        raise refuse("a path must not hold control characters")
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        raise refuse("its name is not valid UTF-8") from None
    if path.startswith("/"):
        raise refuse("a path must be relative to the model's folder")
    parts = encoded.split(b"/")
    if any(part in (b"", b".", b"..") for part in parts):
        raise refuse("a path must not have empty parts, '.' or '..'")
    if len(encoded) > MAX_PATH_BYTES or any(len(part) > MAX_NAME_BYTES for part in parts):
        raise refuse(f"a path has at most {MAX_PATH_BYTES} bytes, and a name {MAX_NAME_BYTES}")


def _check_clashes(files: tuple[FileEntry, ...]) -> None:
    """Refuse what cannot lie in one folder: a path twice, a path that is also a folder, one content of two sizes."""
    paths = {file.path for file in files}
    if len(paths) != len(files):
        twice = next(a.path for a, b in itertools.pairwise(files) if a.path == b.path)
        raise InvalidSpec(f"the model lists the file {twice!r} twice; list each path once")
    for file in files:
        for folder in _parents(file.path):
            if folder in paths:
                raise InvalidSpec(f"the model has {folder!r} both as a file and as a folder; rename one")
    sizes: dict[str, int] = {}
    for file in files:
        if sizes.setdefault(file.sha256, file.size) != file.size:
            raise InvalidSpec(f"the model lists the digest {file.sha256} with two sizes; hash the files again")


def _parents(path: str) -> Iterator[str]:
    cut = path.find("/")
    while cut >= 0:
        yield path[:cut]
        cut = path.find("/", cut + 1)


def _entry(item: Any) -> FileEntry:
    if not isinstance(item, dict) or not {"path", "size", "sha256"} <= item.keys():
        raise InvalidSpec("each file of a manifest needs path, size and sha256")
    return FileEntry(item["path"], item["size"], item["sha256"])
