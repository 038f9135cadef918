"""The JSON that comes in: request bodies as pydantic models, and their errors as one sentence."""

from __future__ import annotations

import json
import re
from typing import Any, Self, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cache.manifest import Manifest
from serve.core.errors import BadRequest, InvalidSpec
from serve.core.spec import DeploymentSpec
from serve.core.spec_errors import sentence

M = TypeVar("M", bound=BaseModel)

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelFileBody(_Body):
    path: str = Field(description="Relative to the model's folder.")
    size: int = Field(ge=0, description="Bytes.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class ModelBody(_Body):
    """Files that were, or will be, uploaded by digest; or a URL that the platform fetches."""

    file: str | None = Field(None, description="Path of the model within `files`.")
    files: tuple[ModelFileBody, ...] = Field((), max_length=10_000)
    url: str | None = Field(None, max_length=4096, description="http:// or https:// address of one model file.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.url is not None:
            if self.file is not None or self.files:
                raise ValueError("give either `url` or `file` and `files`, not both")
            if not _URL.match(self.url) or self.url.lower().startswith("file:"):
                raise ValueError("`url` must start with http:// or https://; upload files of this machine by digest")
        elif self.file is None or self.file not in {file.path for file in self.files}:
            raise ValueError("`file` must be the path of one of `files`, or give `url`")
        return self

    def manifest(self) -> Manifest | None:
        """Return the announced files, None for a URL. Raise InvalidSpec."""
        return None if self.url is not None else Manifest.from_json({"files": [dict(file) for file in self.files]})


class DeployBody(_Body):
    """A deployment: its settings, its model, and optionally an inference request to verify it with."""

    spec: DeploymentSpec
    model: ModelBody
    sample: dict[str, Any] | None = None


class RollbackBody(_Body):
    revision: int | None = Field(None, ge=1, description="Retained revision; null: the one before the current.")


def parse(model: type[M], data: bytes) -> M:
    """Return the body as `model`. Raise BadRequest where it is no JSON, InvalidSpec where a value cannot be."""
    try:
        return model.model_validate(_load(data))
    except ValidationError as error:
        raise InvalidSpec(sentence(error)) from None


def _load(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if b"NaN" not in data and b"Infinity" not in data:
            raise BadRequest(f"the body is not JSON: {error}; send a JSON object") from None
    try:
        value = json.loads(data)  # a sample may hold values that are not finite
        json.dumps(value, ensure_ascii=False).encode()  # and its text no lone surrogates, which orjson refuses
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}; send a JSON object") from None
    return value
