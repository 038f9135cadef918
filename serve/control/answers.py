"""Small readings of requests and makings of responses that every endpoint shares."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from serve.core.clock import NS_PER_S
from serve.core.errors import BadRequest, TooLarge

BODY_BYTES = 4 << 20
"""Largest JSON body, samples apart: a manifest of 10,000 files fits."""


def encode(content: Any) -> bytes:
    """Return `content` as JSON. Sums of resource-time, and settings, may be integers beyond orjson's 64 bits."""
    try:
        return orjson.dumps(content, default=str)
    except TypeError:
        return json.dumps(content, default=str).encode()


def json_response(content: Any, status: int = 200) -> Response:
    return Response(encode(content), status, media_type="application/json")


async def body(request: Request, limit_bytes: int) -> bytes:
    """Return the whole body. Raise TooLarge as soon as it is known to be."""
    too_large = TooLarge(f"the body is larger than {limit_bytes} bytes; upload files to /api/v1/blobs instead")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit_bytes:
        raise too_large
    parts = bytearray()
    async for part in request.stream():
        parts += part
        if len(parts) > limit_bytes:
            raise too_large
    return bytes(parts)


def whole(text: str | None, name: str, default: int) -> int:
    """Return a query parameter that is a whole number ≥ 0. Raise BadRequest."""
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise BadRequest(f"{name} is '{text}', which is no whole number: write {name}={default}")
    return int(text)


def positive(text: str | None, name: str, default: float) -> float:
    """Return a query parameter that is a number of seconds > 0. Raise BadRequest."""
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise BadRequest(f"{name} is '{text}', which is no number of seconds: write {name}={default:g}")
    return value


def bill_query(request: Request) -> tuple[str, int | None, int | None]:
    """Return (by, since_ns, until_ns). Raise BadRequest."""
    return request.query_params.get("by") or "deployment", *span(request)


def span(request: Request) -> tuple[int | None, int | None]:
    """Return (since_ns, until_ns). Raise BadRequest."""
    query = request.query_params
    return _instant(query.get("since"), "since"), _instant(query.get("until"), "until")


def _instant(text: str | None, name: str) -> int | None:
    """Return a wall time in ns from ISO 8601 (without a zone: UTC) or seconds since 1970."""
    if not text:
        return None
    try:
        if text.replace(".", "", 1).isdigit():
            return round(float(text) * NS_PER_S)
        at = datetime.fromisoformat(text)
        return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * NS_PER_S)
    except (ValueError, OverflowError):
        raise BadRequest(
            f"{name} is '{text}', which is no point in time: write {name}=2026-01-31T08:00:00Z or seconds since 1970"
        ) from None
