"""Where models come from: the contract that every kind of source keeps. S3 will be one more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cache.manifest import Manifest
from cache.store import ModelStore

Progress = Callable[[int, int | None], None]
"""Told `(bytes_done, bytes_total)` on the loop, after each part; the total is None while it is unknown."""


class Source(Protocol):
    """Brings the files behind one kind of URL into the store."""

    async def fetch(self, url: str, store: ModelStore, progress: Progress) -> Manifest:
        """Store all contents and return the manifest, ready for `store.publish`.

        Raises SourceUnreachable, FilesMissing, SourceChanged, InvalidSpec or StorageFull. Cancelling leaves no
        partial content behind.
        """
