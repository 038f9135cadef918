"""Bytes on their way into the store: gathered into parts, checked against what was announced, refused in sentences."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

from cache.index import shown_bytes
from cache.manifest import READ_BYTES
from serve.core.errors import SourceChanged, SourceUnreachable, StorageFull

CHUNK_TIMEOUT_S = 120.0
"""Longest wait for the next bytes of a content."""
PART_TIMEOUT_S = 300.0
"""Longest time for each MiB: who trickles holds space, and up those who want the same content."""

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


async def parts(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Join small chunks to parts of about a MiB: each part costs two thread hops."""
    pending = bytearray()
    now_s = asyncio.get_running_loop().time
    part_until_s = now_s() + PART_TIMEOUT_S
    while True:
        try:
            async with asyncio.timeout_at(min(now_s() + CHUNK_TIMEOUT_S, part_until_s)) as deadline:
                chunk = await anext(chunks, None)
        except TimeoutError:
            if not deadline.expired():
                raise
            if now_s() >= part_until_s:
                slow = f"less than {READ_BYTES >> 20} MiB came in {PART_TIMEOUT_S:.0f} s; send it over a faster line"
                raise SourceUnreachable(slow) from None
            raise SourceUnreachable(f"no bytes came for {CHUNK_TIMEOUT_S:.0f} s; send the file again") from None
        if chunk is None:
            break
        pending += chunk
        if len(pending) >= READ_BYTES:
            yield bytes(pending)
            pending.clear()
            part_until_s = now_s() + PART_TIMEOUT_S
    if pending:
        yield bytes(pending)


def changed(sha256: str | None, what: str) -> SourceChanged:
    """Return the error for bytes that differ from what was announced. `what` says how."""
    named = f"the file {sha256[:12]}" if sha256 else "the file"
    return SourceChanged(f"{named} is not what was announced: {what}; it changed while it was read, deploy it again")


@contextlib.contextmanager
def disk_full_said(size_bytes: int | None) -> Iterator[None]:
    """Turn the kernel's "no space left" into a sentence for people."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        what = "the model's files" if size_bytes is None else f"a file of {shown_bytes(size_bytes)}"
        raise StorageFull(
            f"the disk of the store is full: {what} could not be written ({error.strerror}); free space there, delete "
            "deployments that are not needed, or set SERVE_HOME to a folder on another disk",
            needed_bytes=size_bytes,
        ) from error
