"""Models behind http:// and https://: one URL, one file, which keeps its name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, LocationValueError, MaxRetryError, ResponseError, SSLError
from urllib3.util import Retry, make_headers, parse_url

from cache.manifest import READ_BYTES, FileEntry, Manifest, check_path
from cache.sources.base import Progress
from cache.store import ModelStore
from cache.threads import in_thread
from serve.core.errors import InvalidSpec, ServeError, SourceUnreachable

DEFAULT_RETRY = Retry(
    total=4, backoff_factor=0.25, backoff_max=10, retry_after_max=30, status_forcelist=(408, 429, 500, 502, 503, 504)
)
_NO_RETRY = Retry(connect=False, read=False, other=False, redirect=5, total=None, respect_retry_after_header=False)
"""urllib3 follows redirects; all other retries happen here, where a body that was cut short counts too."""


class HttpSource:
    """Streams one response into the store. A body that ends early, an error of the server or of the network is retried.

    `part_timeout_s` bounds the time for each MiB, so a server that only trickles is given up.
    """

    def __init__(
        self,
        retry: Retry = DEFAULT_RETRY,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float = 30.0,
        part_timeout_s: float = 60.0,
    ) -> None:
        self._retry = retry
        self._timeout = urllib3.Timeout(connect=connect_timeout_s, read=read_timeout_s)
        self._part_timeout_s = part_timeout_s

    async def fetch(self, url: str, store: ModelStore, progress: Progress) -> Manifest:
        name = _file_name(url)
        retry = self._retry
        with urllib3.PoolManager(timeout=self._timeout) as pool:
            while True:
                try:
                    sha256, size = await self._attempt(pool, url, store, progress)
                    return Manifest((FileEntry(name, size, sha256),))
                except (_BadStatus, TimeoutError, HTTPError) as error:
                    retry = _next_try(retry, url, error)
                    await asyncio.sleep(max(retry.get_backoff_time(), getattr(error, "retry_after_s", 0.0)))

    async def _attempt(
        self, pool: urllib3.PoolManager, url: str, store: ModelStore, progress: Progress
    ) -> tuple[str, int]:
        response = await in_thread(_request, pool, url)
        try:
            if response.status != 200:
                raise _BadStatus(response, self._retry)
            total_bytes = _announced_bytes(response)
            async with aclosing(self._chunks(response, total_bytes, progress)) as chunks:
                return await store.receive(chunks, total_bytes)
        finally:
            response.close()

    async def _chunks(
        self, response: urllib3.BaseHTTPResponse, total_bytes: int | None, progress: Progress
    ) -> AsyncGenerator[bytes, None]:
        done_bytes = 0
        progress(0, total_bytes)
        while True:
            async with asyncio.timeout(self._part_timeout_s):
                chunk = await in_thread(response.read, READ_BYTES, abort=lambda: _abort(response))
            if not chunk:
                return
            done_bytes += len(chunk)
            progress(done_bytes, total_bytes)
            yield chunk


class _BadStatus(Exception):
    """The server answered, but not with the file."""

    def __init__(self, response: urllib3.BaseHTTPResponse, retry: Retry) -> None:
        super().__init__(f"the server answered {response.status} {response.reason or ''}".rstrip())
        self.status = response.status
        self.is_worth_a_retry = retry.is_retry("GET", response.status, "retry-after" in response.headers)
        self.retry_after_s = retry.get_retry_after(response) or 0.0 if self.is_worth_a_retry else 0.0


def _request(pool: urllib3.PoolManager, url: str) -> urllib3.BaseHTTPResponse:
    auth = parse_url(url).auth
    headers = make_headers(basic_auth=unquote(auth) if auth else None) | {"accept-encoding": "identity"}
    return pool.request("GET", url, headers=headers, retries=_NO_RETRY, preload_content=False)


def _abort(response: urllib3.BaseHTTPResponse) -> None:
    """Wake the thread that reads this response. Nothing to do where it has just ended."""
    with suppress(ValueError, RuntimeError, OSError):
        response.shutdown()


def _next_try(retry: Retry, url: str, error: _BadStatus | TimeoutError | HTTPError) -> Retry:
    """Return the retries that are left; raise SourceUnreachable where another try is of no use or none is left."""
    is_final = isinstance(error, SSLError | LocationValueError | MaxRetryError)
    if isinstance(error, _BadStatus):
        is_final = not error.is_worth_a_retry
    if is_final:
        raise _unreachable(url, error) from error
    try:
        return retry.increment("GET", url, error=ResponseError(str(error)))
    except MaxRetryError:
        raise _unreachable(url, error) from error


def _unreachable(url: str, error: Exception) -> ServeError:
    if isinstance(error, _BadStatus) and error.status in (401, 403):
        remedy = "put credentials into the URL (https://user:password@host/…) or download the model and deploy the file"
    elif isinstance(error, _BadStatus) and error.status in (404, 410):
        remedy = "check the address"
    elif isinstance(error, SSLError):
        remedy = "its certificate is not trusted here; install its authority's certificate, or deploy a downloaded file"
    else:
        remedy = "check the address and the network, then deploy again, or download the model and deploy the file"
    return SourceUnreachable(f"{shown_url(url)} could not be fetched: {_reason(error, url)}; {remedy}")


def shown_url(url: str) -> str:
    """Return the URL without password and query, which may hold secrets and must not reach logs."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _reason(error: Exception, url: str) -> str:
    """Return what the library says, without the names of its objects and the secrets of the URL."""
    if isinstance(error, TimeoutError):
        return "the server sends too slowly"
    cause = error.reason if isinstance(error, MaxRetryError) else error
    reason = str(cause).rpartition("): ")[2]
    parts = urlsplit(url)
    for secret in (parts.query, parts.netloc.rpartition("@")[0]):
        if secret:
            reason = reason.replace(secret, "…")
    return reason


def _file_name(url: str) -> str:
    try:
        name = PurePosixPath(unquote(urlsplit(url).path)).name
    except ValueError as error:
        raise InvalidSpec(f"this is not a URL: {error}") from None
    if not name:
        raise InvalidSpec(f"{shown_url(url)} names no file; give the URL of the model file itself")
    check_path(name)
    return name


def _announced_bytes(response: urllib3.BaseHTTPResponse) -> int | None:
    """Return the size of the file, where the server says it and does not pack it on the way."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        return None
    length = response.headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdigit() else None
