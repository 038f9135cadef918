"""The one table from URL scheme to source."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cache.manifest import Manifest
from cache.sources.base import Progress, Source
from cache.sources.http import HttpSource, shown_url
from cache.store import ModelStore
from serve.core.errors import InvalidSpec, Unsupported

SOURCES: Mapping[str, Source] = {
    "http": HttpSource(),
    "https": HttpSource(),
}
"""By scheme, in lower case. Files of a person's own machine are uploaded: the platform reads no paths of its own."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def ignore_progress(done_bytes: int, total_bytes: int | None) -> None:
    """Tell nobody."""


async def fetch(
    url: str, store: ModelStore, progress: Progress = ignore_progress, sources: Mapping[str, Source] = SOURCES
) -> Manifest:
    """Bring the model at `url` into the store.

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
    known = " or ".join(f"{name}://" for name in sources)
    raise InvalidSpec(f"a model cannot come from {shown_url(url)!r}: give a URL with {known}, or upload the file")
