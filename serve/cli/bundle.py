"""The files of a model as the platform takes them: path, size and sha256, taken once.

A file that changes afterwards no longer has the digest that was announced, and the platform refuses it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from serve.cli.failure import CommandError, ExitCode, usage
from serve.core.home import user_path

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of the manifest. `path` is relative to the model's folder, with `/`."""

    path: str
    size_bytes: int
    sha256: str
    source: Path


class Bundle:
    """A model file and the external-data files that it turns out to need. Owned by one `serve deploy`."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.folder = model.parent
        self.files: dict[str, ModelFile] = {}
        self._add(model.name, model)

    def document(self) -> dict[str, Any]:
        """Return the `model` of a deploy call."""
        files = [{"path": file.path, "size": file.size_bytes, "sha256": file.sha256} for file in self.files.values()]
        return {"file": self.model.name, "files": files}

    def require(self, path: str) -> ModelFile:
        """Return the file at `path` beside the model, adding it where it is new. Raises CommandError.

        A path is followed only within the model's folder, links included: a model from elsewhere must not make us
        upload what else lies on this machine.
        """
        if path in self.files:
            return self.files[path]
        relative = PurePosixPath(path)
        if relative.is_absolute() or ".." in relative.parts:
            raise self._refused(path, "which is outside its folder: put the file beside the model and save it again")
        source = self.folder / relative
        if not source.exists():
            raise self._refused(path, f"which is not in {self.folder}: put the file there")
        if not source.resolve().is_relative_to(self.folder.resolve()):
            raise self._refused(path, "which is a link that leaves its folder: put the file itself beside the model")
        return self._add(path, source)

    def _add(self, path: str, source: Path) -> ModelFile:
        digest = hashlib.sha256()
        size_bytes = 0
        try:
            with source.open("rb") as stream:
                while chunk := stream.read(_READ_BYTES):
                    digest.update(chunk)
                    size_bytes += len(chunk)
        except OSError as error:
            raise usage(f"cannot read {source} ({error.strerror}): check its permissions") from error
        file = ModelFile(path, size_bytes, digest.hexdigest(), source)
        self.files[path] = file
        return file

    def _refused(self, path: str, why: str) -> CommandError:
        return CommandError(
            "files_missing",
            f"{self.model.name} refers to '{path}', {why}",
            exit_code=ExitCode.DEPLOY_FAILED,
            files=[path],
        )


def find_model(text: str) -> Path:
    """Return the model file that `text` (a file, or a folder with one `*.onnx`) means. Raises CommandError."""
    path = user_path(text).absolute()
    if path.is_dir():
        return _only_model(path, text)
    if not path.exists():
        raise usage(f"there is no file '{text}': name a model file, a folder with one, or a URL")
    if not path.is_file():
        raise usage(f"'{text}' is neither a file nor a folder: name a model file such as model.onnx")
    return path


def _only_model(folder: Path, text: str) -> Path:
    try:
        models = sorted(path for path in folder.glob("*.onnx") if path.is_file())
    except OSError as error:
        raise usage(f"cannot read the folder '{text}' ({error.strerror}): check its permissions") from error
    if not models:
        raise usage(f"the folder '{text}' has no *.onnx file: name the model file itself")
    if len(models) > 1:
        names = ", ".join(path.name for path in models[:5]) + (", …" if len(models) > 5 else "")
        raise usage(f"the folder '{text}' has {len(models)} models ({names}): name one of them")
    return models[0]
