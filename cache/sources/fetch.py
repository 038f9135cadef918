"""The one table from URL scheme to source."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cache.manifest import Manifest
from cache.sources.base import Progress, Source
from cache.sources.http import HttpSource
from cache.sources.local import LocalSource
from cache.store import ModelStore
from serve.core.errors import InvalidSpec, Unsupported

SOURCES: Mapping[str, Source] = {
    "": LocalSource(),
    "file": LocalSource(),
    "http": HttpSource(),
    "https": HttpSource(),
}
"""By scheme, in lower case; a plain path has none."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def ignore_progress(done_bytes: int, total_bytes: int | None) -> None:
    """Tell nobody."""


async def fetch(
    url: str, store: ModelStore, progress: Progress = ignore_progress, sources: Mapping[str, Source] = SOURCES
) -> Manifest:
    """Bring the model at `url` (a path, `file://`, `http://` or `https://`) into the store.

    Returns its manifest, ready for `store.publish`. Raises as `Source.fetch`; Unsupported or InvalidSpec for schemes
    without a source.
    """
    match = _SCHEME.match(url)
    scheme = match[1].lower() if match else ""
    source = sources.get(scheme)
    if source is not None:
        return await source.fetch(url, store, progress)
    if scheme == "s3":
        raise Unsupported("models on s3:// cannot be fetched yet; download the model and deploy the file")
    known = ", ".join(f"{name}://" for name in sources if name)
    raise InvalidSpec(f"{scheme}:// is not a place models can come from; give a path, or a URL with {known}")
