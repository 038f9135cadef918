"""Names and ids: what a user names, what the platform numbers, and how both look on wires.

Standard library only: the runtime imports this module inside a user's own environment.
"""

from __future__ import annotations

import itertools
import random
import re
from pathlib import PurePath
from typing import NamedTuple, NewType

DeploymentName = NewType("DeploymentName", str)
ReplicaId = NewType("ReplicaId", str)
RequestId = NewType("RequestId", str)

RESERVED_NAMES = frozenset({"stats", "index", "ready"})
"""Words that the inference protocol uses as path segments beside model names."""

GENERIC_STEMS = frozenset({"model", "saved_model", "pytorch_model"})
"""File stems that say nothing: the folder names the deployment instead."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_SYSTEM = random.SystemRandom()


class RevisionKey(NamedTuple):
    """One immutable revision of a deployment: the unit of routing and scaling."""

    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name}-r{self.number}"


def check_name(name: str) -> DeploymentName:
    """Return `name` if it may name a deployment; raise ValueError with the remedy if not."""
    if name in RESERVED_NAMES:
        raise ValueError(f"'{name}' is a word of the inference protocol; choose another name")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"'{name}' cannot name a deployment: use 1 to 63 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit"
        )
    return DeploymentName(name)


def default_name(model: str) -> str:
    """Return the name a deployment of `model` (a path or URL) gets when the user gives none.

    The file's stem, or its folder's name where the stem is generic (`digits/model.onnx` → `digits`).
    """
    if "://" in model:
        model = re.split("[?#]", model, maxsplit=1)[0]
    path = PurePath(model)
    stem = path.stem if path.suffix else path.name
    if stem in GENERIC_STEMS and path.parent.name:
        stem = path.parent.name
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")
    return cleaned[:63]


def new_writer_id(chance: random.Random = _SYSTEM) -> str:
    """Return an id for one life of one journal-writing process: 8 base32 characters, random."""
    return _random_base32(8, chance)


def new_replica_id(key: RevisionKey, chance: random.Random = _SYSTEM) -> ReplicaId:
    """Return an id unique to one replica's life, such as `digits-r3-k7q2m9xd`."""
    return ReplicaId(f"{key.name}-r{key.number}-{_random_base32(8, chance)}")


class RequestIds:
    """Mints `<writer>-<seq>` request ids. Owned by the one event loop of its writer."""

    def __init__(self, writer: str) -> None:
        self.writer = writer
        self._prefix = writer + "-"
        self._sequence = itertools.count(1)

    def next(self) -> RequestId:
        return RequestId(self._prefix + str(next(self._sequence)))


def _random_base32(length: int, chance: random.Random) -> str:
    return "".join(chance.choice(_BASE32) for _ in range(length))
