"""The version of this distribution, from its installed metadata."""

from __future__ import annotations

import functools
from importlib import metadata


@functools.cache
def version() -> str:
    return metadata.version("servezero")
