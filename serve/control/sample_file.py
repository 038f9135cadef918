"""The curl of a receipt, with its body in a file where it is long."""

from __future__ import annotations

import asyncio
from pathlib import Path

from serve.control.receipt import INLINE_BYTES, curl_command
from serve.control.sample import Body
from serve.core.errors import StorageFull
from serve.core.frames import NO_JSON_LENGTH
from serve.core.home import Home


async def curl(home: Home, name: str, endpoint: str, body: Body) -> str:
    """Return a command that calls the endpoint with `body`. Raise StorageFull where its file cannot be written."""
    if body.json_length == NO_JSON_LENGTH and len(body.data) <= INLINE_BYTES:
        return curl_command(endpoint, body.data, body.json_length, None)
    suffix = "json" if body.json_length == NO_JSON_LENGTH else "bin"
    path = home.run / "samples" / f"{name}.{suffix}"
    try:
        await asyncio.to_thread(_write, path, body.data)
    except OSError as error:
        raise StorageFull(
            f"{path} could not be written ({error.strerror}): free space on its disk, then try again"
        ) from error
    return curl_command(endpoint, body.data, body.json_length, str(path))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(data)
