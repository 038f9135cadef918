"""Uploads of model files by digest."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from serve.control.answers import json_response
from serve.control.ports import Store
from serve.core.errors import BadRequest, TooLarge


class Uploads:
    """Endpoint of `/blobs`. Holds no state: the store has it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put_blob(self, request: Request) -> Response:
        """Upload one file under the sha256 of its bytes.

        201, or 200 where it is here already (then the body is not read). Content-Length is required.
        """
        sha256 = request.path_params["sha256"]
        announced = request.headers.get("content-length", "")
        if not announced.isascii() or not announced.isdigit():
            raise BadRequest("an upload needs Content-Length: send the file's size with it")
        size_bytes = int(announced)
        if size_bytes > self._store.budget_bytes:
            raise TooLarge(
                f"the file has {size_bytes} bytes, the whole store {self._store.budget_bytes}; start the platform with "
                "a larger SERVE_STORE_BUDGET"
            )
        is_new = await self._store.put_blob(sha256, size_bytes, request.stream())
        return json_response({"sha256": sha256, "size": size_bytes}, 201 if is_new else 200)
