"""A manifest names exactly the files of a model, and nothing outside its folder."""

from __future__ import annotations

import os
import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.manifest import MAX_FILES, FileEntry, Manifest
from serve.core.errors import InvalidSpec
from tests.cache.harness import manifest_of, sha256_of

EMPTY = sha256_of(b"")

_BAD_PATHS = [
    "",
    "/etc/passwd",
    "..",
    "../x",
    "a/../b",
    "a/..",
    ".",
    "./a",
    "a//b",
    "a/",
    "a\0b",
    "a\nb",
    "..\\x",
    "C:\\x",
    "a\udcff",
    "x" * 256,
    "/".join(["x" * 100] * 11),
]


@pytest.mark.parametrize("path", _BAD_PATHS)
def test_a_path_that_could_lie_elsewhere_or_nowhere_is_refused(path: str) -> None:
    with pytest.raises(InvalidSpec):
        FileEntry(path, 0, EMPTY)


@pytest.mark.parametrize("path", ["model.onnx", "1/model.onnx", ".hidden", "..a", "a..", "a b", "модель.onnx", "..."])
def test_an_ordinary_path_is_taken_as_it_is(path: str) -> None:
    assert FileEntry(path, 0, EMPTY).path == path


@given(st.text(alphabet=st.sampled_from("ab./\\\0\n~é"), max_size=12))
def test_an_accepted_path_stays_below_its_folder(path: str) -> None:
    try:
        FileEntry(path, 0, EMPTY)
    except InvalidSpec:
        return
    assert posixpath.normpath(path) == path
    assert os.path.commonpath(["/store/files", posixpath.join("/store/files", path)]) == "/store/files"
    assert path not in ("", ".")


_NAMES = st.text(alphabet="abc.-", min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join)


@given(st.dictionaries(_PATHS, st.binary(max_size=4), min_size=1, max_size=6))
def test_every_accepted_manifest_can_be_laid_out_and_survives_json(files: dict[str, bytes]) -> None:
    clash = any(other.startswith(path + "/") for path in files for other in files)
    try:
        manifest = manifest_of(files)
    except InvalidSpec:
        assert clash
        return
    assert not clash
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest_of(dict(reversed(files.items()))).digest == manifest.digest


def test_digest_is_the_sha256_of_one_line_per_file_in_path_order() -> None:
    manifest = manifest_of({"b": b"2", "a": b"1"})
    lines = f"{sha256_of(b'1')} 1 a\n{sha256_of(b'2')} 1 b\n"
    assert manifest.digest == sha256_of(lines.encode())


def test_digest_changes_with_path_and_content() -> None:
    digests = {manifest_of(files).digest for files in ({"a": b"1"}, {"b": b"1"}, {"a": b"2"}, {"a": b"1", "b": b""})}
    assert len(digests) == 4


@pytest.mark.parametrize(
    "files",
    [
        (),
        (FileEntry("a", 0, EMPTY), FileEntry("a", 0, EMPTY)),
        (FileEntry("a", 0, EMPTY), FileEntry("a-b", 0, EMPTY), FileEntry("a/b", 0, EMPTY)),
        (FileEntry("a", 0, EMPTY), FileEntry("b", 1, EMPTY)),
        tuple(FileEntry(str(number), 0, EMPTY) for number in range(MAX_FILES + 1)),
    ],
    ids=["empty", "twice", "file-and-folder", "two-sizes", "too-many"],
)
def test_files_that_cannot_lie_in_one_folder_are_refused(files: tuple[FileEntry, ...]) -> None:
    with pytest.raises(InvalidSpec):
        Manifest(files)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"files": {}},
        {"files": [1]},
        {"files": [{"path": "a", "size": 1}]},
        {"files": [{"path": 1, "size": 1, "sha256": EMPTY}]},
        {"files": [{"path": "a", "size": -1, "sha256": EMPTY}]},
        {"files": [{"path": "a", "size": True, "sha256": EMPTY}]},
        {"files": [{"path": "a", "size": 1.5, "sha256": EMPTY}]},
        {"files": [{"path": "a", "size": 1, "sha256": EMPTY.upper()}]},
        {"files": [{"path": "a", "size": 1, "sha256": EMPTY + "\n"}]},
        {"files": [{"path": "a", "size": 1, "sha256": None}]},
    ],
)
def test_json_that_is_no_manifest_is_refused_with_a_sentence(data: object) -> None:
    with pytest.raises(InvalidSpec):
        Manifest.from_json(data)
